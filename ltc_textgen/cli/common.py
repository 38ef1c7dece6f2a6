"""What the subcommands have in common: options made from settings, durations, a progress bar, the device."""

import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from ltc_textgen.errors import UsageError

if TYPE_CHECKING:
    import torch

DEFAULT_RUN = Path("runs/default")

RunDirectory = Annotated[
    Path, typer.Argument(metavar="[RUN_DIR]", help="Run directory that `ltc train` wrote, or demo.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=4096, help="CPU threads; all cores if not given.")]


def describe(settings: type[BaseModel], name: str, *flags: str, **more: Any) -> Any:
    """An option with the help text and the default of a settings field of `config`."""
    field = settings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    shown = {"show_default": str(default)} if default not in (None, "", ()) else {"show_default": False}
    return typer.Option(*flags, help=field.description, **{**shown, **more})


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def seconds(text: str) -> float:
    """Read a duration.

    Args:
        text: A number of seconds, or numbers with units: "80s", "15m", "1h30m".

    Raises:
        UsageError: If it is not a duration above zero.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if not parts or "".join(n + u for n, u in parts) != re.sub(r"\s", "", text.lower()):
        raise UsageError(f"not a duration: {text!r} (write 80s, 15m or 1h30m)")
    total = sum(float(number) * units[unit] for number, unit in parts)
    if total <= 0:
        raise UsageError(f"a duration must be above zero, got {text!r}")
    return total


def finite(value: float) -> float:
    """Validate that a number of an option is finite; NaN would pass every minimum and maximum.

    Raises:
        typer.BadParameter: If it is not finite.
    """
    if not math.isfinite(value):
        raise typer.BadParameter(f"expected a number, got {value}")
    return value


def is_main_process() -> bool:
    """Whether this is the process that reports: the first of those that a launcher (torchrun) started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bar(title: str, stream: IO[str] | None = None) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; None elsewhere.

    Args:
        title: Text before the bar.
        stream: stderr if None.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=stream or sys.stderr)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    columns = TextColumn(title), BarColumn(bar_width=24), TextColumn("{task.completed:,} of {task.total:,} tokens")
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def prepare_torch(device: str, threads: int | None) -> "torch.device":
    """Set the number of threads; returns the device.

    Raises:
        UsageError: If the device does not exist here.
    """
    import torch

    from ltc_textgen.devices import choose_device, usable_threads

    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_threads()))
    return choose_device(device)
