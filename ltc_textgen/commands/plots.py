"""What `ltc inspect` draws. Needs matplotlib (the extra "plot")."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltc_textgen.errors import UsageError

if TYPE_CHECKING:
    from ltc_textgen.shapes import Tensor

NEURONS = 6
"""Neurons of a layer whose time constants are drawn."""

TOKENS = 160
"""Tokens up to which each is written below the axis."""


def draw_curve(curve: list[dict[str, Any]], path: Path) -> None:
    """Draw losses over steps into an image file.

    Raises:
        UsageError: If there is no curve, matplotlib is missing, or the file's type is unknown.
    """
    if not curve:
        raise UsageError("--plot: the run has no validation in metrics.jsonl to draw")
    figure, (axes,) = _figure(1, (7, 4))
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        points = [(record["step"], record[name]) for record in curve if record.get(name) is not None]
        axes.plot(*zip(*points, strict=True), label=label) if points else None
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.legend()
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


def _figure(rows: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install 'ltc-textgen[plot]'") from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, sharex=True, squeeze=False)[:, 0])


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot draw into {path}: {error}") from None
