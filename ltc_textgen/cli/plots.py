"""What `ltc inspect` draws. Needs matplotlib (the extra "plot")."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltc_textgen.errors import UsageError

if TYPE_CHECKING:
    from ltc_textgen.shapes import Tensor

NEURONS = 6
"""Neurons of a layer whose time constants are drawn."""

MARKED = 60
"""Points up to which each is marked."""

TOKENS = 160
"""Tokens up to which each is written below the axis."""


def draw_curves(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draw curves over steps into an image file: the losses together, below them the learning rate and the speed.

    Args:
        curves: Steps and values of training loss, validation loss, learning rate and tokens/s; any may be empty.
        path: Image file; its suffix is the format (svg, png, pdf).

    Raises:
        UsageError: If there is no curve, matplotlib is missing, or the file's type is unknown.
    """
    losses = {name: curve for name, curve in curves.items() if name.endswith(" loss")}
    others = {name: curve for name, curve in curves.items() if name not in losses and curve}
    if not any(losses.values()):
        raise UsageError("--plot: the run has no loss in metrics.jsonl to draw")
    figure, (top, *below) = _figure(1 + len(others), (7, 3.5 + 1.4 * len(others)), [3.0] + [1.0] * len(others))
    for name, curve in losses.items():
        if curve:
            marker = "." if len(curve) < MARKED else ""
            validates = name.startswith("validation")
            top.plot(*zip(*curve, strict=True), label=name, marker=marker, linewidth=1.8 if validates else 1.0)
    top.set(ylabel="nats per token")
    top.legend()
    for axes, (name, curve) in zip(below, others.items(), strict=True):
        axes.plot(*zip(*curve, strict=True), color="tab:gray", linewidth=1.2)
        axes.set(ylabel=name, ylim=(0, None))
    for axes in (top, *below):
        axes.grid(alpha=0.3)
    (below or [top])[-1].set_xlabel("step")
    figure.align_ylabels()
    _save(figure, path)


def draw_time_constants(layers: "list[Tensor]", tokens: list[str], path: Path) -> None:
    """Draw how the time constants of some neurons move while a text is read: a panel a layer.

    The neurons drawn are spread evenly over the layer's, ordered by their median time constant.

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
        # A dollar sign would begin a formula.
        labels = [_visible(token).replace("$", r"\$") for token in tokens]
        size, turn = (8, 0) if max(map(len, tokens)) == 1 else (7, 90)
        panels[-1].set_xticks(range(len(tokens)), labels, fontsize=size, rotation=turn)
    else:
        panels[-1].set_xlabel("token")
    _save(figure, path)


def _visible(token: str) -> str:
    return {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}.get(
        token, token if token.isprintable() else repr(token)[1:-1]
    )


def _figure(rows: int, size: tuple[float, float], heights: list[float] | None = None) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install 'ltc-textgen[plot]'") from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, sharex=True, squeeze=False, height_ratios=heights)[:, 0])


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot draw into {path}: {error}") from None
