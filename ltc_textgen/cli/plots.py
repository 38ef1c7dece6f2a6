"""The figures of `ltc inspect` and `ltc analyse`. They need matplotlib (the extra "plot")."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltc_textgen.cli.curves import Curve
from ltc_textgen.errors import UsageError
from ltc_textgen.io.extras import install_line
from ltc_textgen.io.output import printable

if TYPE_CHECKING:
    from ltc_textgen.analysis import HalfLives
    from ltc_textgen.shapes import Tensor

NEURONS = 6
"""Neurons of a layer whose time constants are drawn."""

MARKED = 60
"""Most points of a curve of which each is marked."""

TOKENS = 160
"""Most tokens that are written below the axis."""


def draw_curves(runs: dict[str, dict[str, Curve]], path: Path) -> None:
    """Draw curves over steps into an image file: the losses on one panel, learning rate and speed below it.

    Args:
        runs: For each run by name its curves: training loss, validation loss, learning rate, tokens/s; any may be
            empty. Several runs are drawn in one colour each, and named.
        path: Image file; its suffix is the format (svg, png, pdf).

    Raises:
        UsageError: If there is no curve, matplotlib is missing, or the file's type is unknown.
    """
    names = list(dict.fromkeys(name for curves in runs.values() for name, curve in curves.items() if curve))
    losses, others = ([name for name in names if name.endswith(" loss") is wanted] for wanted in (True, False))
    if not losses:
        raise UsageError("--plot: the run has no loss in metrics.jsonl to draw")
    figure, (top, *below) = _figure(1 + len(others), (7, 3.5 + 1.4 * len(others)), [3.0] + [1.0] * len(others))
    for number, (run, curves) in enumerate(runs.items()):
        for name in losses:
            if curve := curves[name]:
                style: dict[str, Any] = {"label": name, "marker": "." if len(curve) < MARKED else ""}
                if len(runs) > 1:
                    style |= {"label": f"{_plain(run)}: {name}", "color": f"C{number}"}
                    style |= {} if name.startswith("validation") else {"linestyle": ":"}
                top.plot(*zip(*curve, strict=True), linewidth=1.8 if name.startswith("validation") else 1.0, **style)
        for axes, name in zip(below, others, strict=True):
            if curve := curves[name]:
                colour = "tab:gray" if len(runs) == 1 else f"C{number}"
                axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.2)
                axes.set(ylabel=name, ylim=(0, None))
    top.set(ylabel="nats per token")
    top.legend()
    for axes in (top, *below):
        axes.grid(alpha=0.3)
    (below or [top])[-1].set_xlabel("step")
    figure.align_ylabels()
    _save(figure, path)


def draw_time_constants(layers: "list[Tensor]", tokens: list[str], path: Path) -> None:
    """Draw the time constants of some neurons while a text is read, one panel a layer.

    The neurons are evenly spaced in the order of their median time constant.

    Args:
        layers: Time constants of every layer, in tokens, (T, N).
        tokens: The T tokens that were read, as they stand in the vocabulary.
        path: Image file; its suffix is the format (svg, png, pdf).

    Raises:
        UsageError: If matplotlib is missing, or the file's type is unknown.
    """
    figure, panels = _figure(len(layers), (max(5.0, min(0.16 * len(tokens), 30.0)), 0.6 + 2.0 * len(layers)))
    for number, (axes, tau) in enumerate(zip(panels, layers, strict=True)):
        order = tau.median(dim=0).values.argsort()
        count = min(NEURONS, len(order))
        chosen = [order[round(k * (len(order) - 1) / max(count - 1, 1))].item() for k in range(count)]
        for neuron in chosen:
            axes.plot(tau[:, int(neuron)].tolist(), linewidth=1.2, marker="." if len(tokens) < 2 else "")
        axes.set(yscale="log", ylabel="tokens", title=f"layer {number}: time constants of {count} neurons")
        axes.margins(x=0.01)
    if len(tokens) <= TOKENS:
        labels = [_plain(_visible(token)) for token in tokens]
        size, turn = (8, 0) if max(map(len, tokens)) == 1 else (7, 90)
        panels[-1].set_xticks(range(len(tokens)), labels, fontsize=size, rotation=turn)
    else:
        panels[-1].set_xlabel("token")
    _save(figure, path)


def draw_analysis(lives: "HalfLives", curve: dict[str, Any], path: Path) -> None:
    """Draw the half-lives of the neurons of each layer, and the memory curve.

    Args:
        lives: Of the neurons.
        curve: `distance` and `increase` of a memory curve.
        path: Image file; its suffix is the format (svg, png, pdf).

    Raises:
        UsageError: If matplotlib is missing, or the file's type is unknown.
    """
    import numpy as np

    figure, (top, bottom) = _figure(2, (7, 6), share=False)
    finite = [layer[np.isfinite(layer)] for layer in lives.half_life]
    every = np.concatenate(finite)
    bins = np.geomspace(every.min(), every.max() * 1.001, 30)
    for number, layer in enumerate(finite):
        top.hist(layer, bins, histtype="step", label=f"layer {number}")
    top.set(xscale="log", xlabel="half-life, tokens", ylabel="neurons")
    top.legend()
    bottom.plot(curve["distance"], curve["increase"], marker=".")
    bottom.set(xscale="log", xlabel="tokens since the reset", ylabel="nats per token lost")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    _save(figure, path)


def _plain(text: str) -> str:
    """A label without control characters, nor a dollar sign that would begin a formula."""
    return printable(text).replace("$", r"\$")


def _visible(token: str) -> str:
    return {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}.get(
        token, token if token.isprintable() else repr(token)[1:-1]
    )


def _figure(
    rows: int, size: tuple[float, float], heights: list[float] | None = None, share: bool = True
) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(f"a plot needs matplotlib: {install_line('plot')}") from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, sharex=share, squeeze=False, height_ratios=heights)[:, 0])


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot draw into {path}: {error}") from None
