"""metrics.jsonl: the loss curve of a run, one JSON object a line; and the trackers that hear the same."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ltc_textgen.errors import LTCError, UsageError

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends lines to RUN/metrics.jsonl, which is made with the first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate(self, length: int) -> None:
        """Drop what is behind `length` bytes: lines of steps that came after a checkpoint and will be made again."""
        if self.path.exists() and self.path.stat().st_size > length:
            os.truncate(self.path, length)

    def append(self, record: dict[str, Any]) -> None:
        """Write one line, whole.

        Raises:
            LTCError: If the disk refuses.
        """
        line = json.dumps({key: json_number(value) for key, value in record.items()}, ensure_ascii=False) + "\n"
        with self._explaining(), self.path.open("ab") as file:
            file.write(line.encode())

    def sync(self) -> int:
        """Bring the lines to the disk; returns the length of the file.

        Raises:
            LTCError: If the disk refuses.
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
                f"cannot write {self.path}: {error.strerror or error}. Checkpoints are as they were; make room or give "
                "write permission, then go on with --resume"
            ) from None


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers that are not installed, which `accelerate` would leave out without a word.

    Raises:
        UsageError: Naming the package to install.
    """
    for name in names:
        if find_spec(name) is None:
            raise UsageError(f"train.track: {name} is not installed here; pip install {name}")


class Trackers:
    """TensorBoard, trackio or wandb through `accelerate`; does nothing if none was asked for."""

    def __init__(self, accelerator: Accelerator, name: str, settings: dict[str, Any]) -> None:
        self._accelerator = accelerator
        self._active = bool(accelerator.log_with)
        if self._active:
            flat = {key: value for key, value in settings.items() if isinstance(value, str | int | float | bool)}
            accelerator.init_trackers(name, config=flat)

    def log(self, record: dict[str, Any]) -> None:
        """Tell them the numbers of a record."""
        if self._active:
            # The step has its own place; trackio keeps its name for itself.
            numbers = {key: v for key, v in record.items() if isinstance(v, int | float) and key != "step"}
            self._accelerator.log(numbers, step=record["step"])

    def close(self) -> None:
        """Let them finish writing."""
        if self._active:
            for tracker in self._accelerator.trackers:
                tracker.finish()


def log_interval(step: int) -> int:
    """Steps between lines: 10 at first, growing with the run, so that a curve has some thousand points per decade."""
    return int(max(10, 10 ** (len(str(step)) - 3)))


def json_number(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
