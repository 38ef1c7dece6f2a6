"""metrics.jsonl: the loss curve of a run, one JSON object a line; and the trackers that log the same."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from ltc_textgen.errors import LTCError, UsageError
from ltc_textgen.io.output import one_line

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends lines to RUN/metrics.jsonl, creating it with the first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate(self, length: int) -> None:
        """Drop what follows `length` bytes: lines of steps after a checkpoint, which will be repeated."""
        if self.path.exists() and self.path.stat().st_size > length:
            with self._explaining(), open(self.path, "r+b", opener=_no_link) as file:
                file.truncate(length)

    def append(self, record: dict[str, Any]) -> None:
        """Write one line, whole.

        Raises:
            LTCError: If the disk cannot be written.
        """
        line = json.dumps({key: json_number(value) for key, value in record.items()}, ensure_ascii=False) + "\n"
        with self._explaining(), open(self.path, "ab", opener=_no_link) as file:
            file.write(line.encode())

    def sync(self) -> int:
        """Flush the lines to disk; returns the length of the file.

        Raises:
            LTCError: If the disk cannot be written.
        """
        if not self.path.exists():
            return 0
        with self._explaining(), self.path.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LTCError(
                f"cannot write {self.path}: {error.strerror or error}. Checkpoints are unchanged; free space or give "
                "write permission, then continue with --resume"
            ) from None


def _no_link(path: str, flags: int) -> int:
    """Open a file, but not through a symbolic link: a run directory may come from a stranger."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def check_trackers(names: tuple[str, ...]) -> None:
    """Reject trackers that are not installed, which `accelerate` would silently leave out.

    Raises:
        UsageError: Naming the package to install.
    """
    for name in names:
        # As `accelerate` looks for them: wandb leaves a folder of its name, which Python would import too.
        if find_spec(name) is None or not _is_distributed(name):
            raise UsageError(f"train.report_to: {name} is not installed here: pip install {name}")


def _is_distributed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


class Trackers:
    """TensorBoard, trackio or wandb through `accelerate`; does nothing if none was asked for.

    One that fails during the run (no network, a full disk) is reported once and then no longer used.

    Args:
        accelerator: Knows which were asked for.
        name: Of the run.
        settings: Of the run, by section; the trackers keep what is a number or a text, as "section.key".
        notify: Called with one line about a tracker that has failed.

    Raises:
        LTCError: If one cannot be started, as when no account is logged in.
    """

    def __init__(
        self, accelerator: Accelerator, name: str, settings: dict[str, dict[str, Any]], notify: Callable[[str], None]
    ) -> None:
        self._trackers: list[GeneralTracker] = []
        self._notify = notify
        if accelerator.log_with:
            flat = {
                f"{section}.{key}": value
                for section, values in settings.items()
                for key, value in values.items()
                if isinstance(value, str | int | float | bool)
            }
            try:
                accelerator.init_trackers(name, config=flat)
            except Exception as error:  # each of these packages has its own
                raise LTCError(f"train.report_to: a tracker cannot be started: {one_line(error)}") from error
            self._trackers = list(accelerator.trackers)

    def log(self, record: dict[str, Any]) -> None:
        """Log the numbers of a record."""
        # The step has its own place; trackio keeps its name for itself.
        numbers = {key: v for key, v in record.items() if isinstance(v, int | float) and key != "step"}
        self._each(lambda tracker: tracker.log(numbers, step=record["step"]))

    def close(self) -> None:
        """Close the trackers, which then finish writing."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, action: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as error:  # each of these packages has its own
                self._trackers.remove(tracker)
                self._notify(f"{tracker.name} has failed and is no longer used: {one_line(error)}")


def log_interval(step: int) -> int:
    """Steps between lines: 10 at first, growing with the run, so that a curve has some thousand points per decade."""
    return int(max(10, 10 ** (len(str(step)) - 3)))


def json_number(value: Any) -> Any:
    """None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
