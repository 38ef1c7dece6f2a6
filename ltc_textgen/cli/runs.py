"""`ltc runs`: a table of the runs below a folder."""

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ltc_textgen.cli.common import Json
from ltc_textgen.cli.curves import is_number, points, read_metrics
from ltc_textgen.errors import ArtifactError
from ltc_textgen.io.output import print_json, print_line, printable
from ltc_textgen.io.paths import user_path

EXAMPLES = """Examples:

`ltc runs` (the runs below ./runs)

`ltc runs experiments --json`

`ltc inspect runs/a runs/b` (two of them side by side)
"""

DEPTH = 4
"""Levels of folders that are searched."""


@dataclass(frozen=True)
class Summary:
    """A run in one row.

    Args:
        run: Its directory.
        loss: Lowest validation loss, nats per token; None before the first validation.
        step: Steps done.
        tokens: Tokens trained on.
        parameters: Size of the network.
        corpus: Name of the corpus.
        tokenizer: Kind of the tokenizer, with which losses compare.
        modified: When the run last wrote, seconds since 1970.
    """

    run: str
    loss: float | None
    step: int | None
    tokens: int | None
    parameters: int | None
    corpus: str | None
    tokenizer: str | None
    modified: float


Folder = Annotated[Path, typer.Argument(metavar="[FOLDER]", help=f"Where to look, {DEPTH} folders deep.")]


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look, four folders deep.")] = Path(
        "runs"
    ),
    as_json: Json = False,
) -> None:
    """List the runs below a folder, the lowest validation loss first.

    Losses of runs compare where corpus and tokenizer are the same.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a directory")
    found = sorted((summary(path) for path in find_runs(folder)), key=lambda row: (row.loss is None, row.loss, row.run))
    if as_json:
        print_json([asdict(row) for row in found])
    elif found:
        for line in table(found):
            print_line(line)
    else:
        raise ArtifactError(f"{folder} holds no run, {DEPTH} folders deep: train one with `ltc train --out DIR`")


def find_runs(folder: Path, depth: int = DEPTH) -> list[Path]:
    """Run directories at or below a folder; links to directories are not followed."""
    if (folder / "training.json").is_file():
        return [folder]
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()) if depth else []
    except OSError:  # a folder of someone else's
        return []
    return [run for path in inner for run in find_runs(path, depth - 1)]


def summary(run: Path) -> Summary:
    """The summary of a run from training.json and metrics.jsonl; missing or damaged values are None."""
    try:
        content = json.loads((run / "training.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        content = {}
    facts = _object(_object(content).get("facts"))
    result, records = _object(facts.get("result")), read_metrics(run / "metrics.jsonl")
    losses = [value for _, value in points(records, "val_loss")]
    steps = [int(record["step"]) for record in records]
    files = [path for name in ("training.json", "metrics.jsonl") if (path := run / name).exists()]
    return Summary(
        run=str(run),
        loss=min(losses) if losses else _number(result.get("best_val_loss")),
        step=max(steps) if steps else _whole(result.get("step")),
        tokens=_whole(result.get("tokens")),
        parameters=_whole(facts.get("parameters")),
        corpus=_text(facts.get("corpus")),
        tokenizer=_text(facts.get("tokenizer")),
        modified=max((path.stat().st_mtime for path in files), default=0.0),
    )


def table(rows: list[Summary]) -> list[str]:
    """The lines of a table, at most as wide as the terminal."""
    head = ("loss", "steps", "tokens", "size", "when", "tokenizer", "corpus", "run")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    room = shutil.get_terminal_size((80, 24)).columns - sum(widths[:-2]) - 2 * (len(head) - 1)
    widths[-2] = min(widths[-2], max(room - widths[-1], 8))
    widths[-1] = min(widths[-1], max(room - widths[-2], 12))
    lines = []
    for row in cells:
        fitted = [
            _fitted(cell, width, column < 4) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(fitted).rstrip())
    return lines


def _cells(row: Summary) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d", time.localtime(row.modified))
    return (
        "-" if row.loss is None else f"{row.loss:.4f}",
        "-" if row.step is None else f"{row.step:,}",
        _short(row.tokens),
        _short(row.parameters),
        when,
        printable(row.tokenizer or "-"),
        printable(row.corpus or "-"),
        printable(os.fsdecode(row.run)),
    )


def _fitted(cell: str, width: int, number: bool) -> str:
    """A cell of a width; of a name that is too long, the end is kept."""
    cell = cell if len(cell) <= width else "~" + cell[len(cell) - width + 1 :]
    return cell.rjust(width) if number else cell.ljust(width)


def _short(number: int | None) -> str:
    """A number in at most five characters: 815k, 1.6M."""
    if number is None:
        return "-"
    size, unit = float(number), ""
    for unit in ("", "k", "M", "G", "T"):
        if size < 999.5 or unit == "T":
            break
        size /= 1000
    return f"{size:.0f}{unit}" if size >= 10 or not unit else f"{size:.1f}{unit}"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _whole(value: Any) -> int | None:
    return int(value) if is_number(value) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
