"""The curves of a run: read from metrics.jsonl, and drawn as one line of block characters."""

import json
import math
from pathlib import Path
from typing import Any

SPARKS = "▁▂▃▄▅▆▇█"

Curve = list[tuple[int, float]]
"""Steps and values."""

CURVES: dict[str, tuple[str, ...]] = {
    "training loss": ("loss", "{:.3f}"),
    "validation loss": ("val_loss", "{:.3f}"),
    "learning rate": ("learning_rate", "loss", "{:.2g}"),
    "tokens/s": ("tokens_per_second", "loss", "{:,.0f}"),
}
"""For each curve the key of its values in metrics.jsonl, a key that its lines have as well, and a number format."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that record a step; a line that is incomplete or no such object is left out.

    Lines end at LF alone: strings in JSON may hold every other character that ends a line of text.
    """
    if not path.is_file():
        return []
    lines = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and is_number(record.get("step")):
            lines.append(record)
    return lines


def is_number(value: object) -> bool:
    """True for a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def points(records: list[dict[str, Any]], key: str, *marks: str) -> Curve:
    """The steps and values of a curve: of `key`, in lines that have a number under the keys in `marks` too."""
    return [(line["step"], line[key]) for line in records if all(is_number(line.get(k)) for k in (key, *marks))]


def named_curves(records: list[dict[str, Any]]) -> dict[str, Curve]:
    """Every curve of `CURVES`, which may be empty."""
    return {name: points(records, *keys) for name, (*keys, _) in CURVES.items()}


def resampled(curve: Curve, columns: int, steps: tuple[int, int] | None = None) -> list[float | None]:
    """Means of a curve over equal spans of steps; a span without a point repeats the one before.

    Args:
        curve: Steps, ascending, and values.
        columns: Spans. A curve of fewer points keeps its own values if `steps` is None.
        steps: First and last step of the spans; those of the curve if None. None stands before its first point and
            after its last.
    """
    if steps is None and len(curve) <= columns:
        return [value for _, value in curve]
    first, last = steps or (curve[0][0], curve[-1][0])
    spans: list[list[float]] = [[] for _ in range(columns)]
    for step, value in curve:
        spans[min(int((step - first) * columns // max(last - first, 1)), columns - 1)].append(value)
    filled = [number for number, span in enumerate(spans) if span]
    means: list[float | None] = []
    for number, span in enumerate(spans):
        inside = bool(filled) and filled[0] <= number <= filled[-1]
        means.append(sum(span) / len(span) if span else means[-1] if inside else None)
    return means


def spark(values: list[float | None], limits: tuple[float, float] | None = None) -> str:
    """A curve as one line of block characters; a blank where it has no value.

    Args:
        values: What `resampled` gives.
        limits: Values of the lowest and the highest block; those of the curve if None.
    """
    numbers = [value for value in values if value is not None]
    low, high = limits or (min(numbers, default=0.0), max(numbers, default=0.0))
    span = (high - low) or 1.0
    return "".join(
        " " if value is None else SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in values
    )
