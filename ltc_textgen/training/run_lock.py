"""One training run per directory: a lock that the operating system releases, and a check for foreign content.

The lock ends with its holder, however that ends. A directory that holds another run or a model of another program is
not written into.
"""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from ltc_textgen.errors import LTCError, UsageError
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.metrics import METRICS

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock-holder.json"


class DirectoryLockedError(LTCError):
    """Another process trains into the directory. Exit code 1."""


class RunLock:
    """Holds a run directory for this process; creates it if need be, and removes it again if nothing was put in it.

    The lock itself is the operating system's (flock), so a killed run leaves nothing to clean up. The holder's
    process id is written beside it only to be named to whoever comes second; a stale note means nothing.

    Raises:
        DirectoryLockedError: On entering, if another process holds the directory; the message names its process id.
        LTCError: On entering, if the directory cannot be created or written to.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._created = False
        self._lock = FileLock(directory / LOCK_FILE, timeout=0)

    def __enter__(self) -> "RunLock":
        try:
            self._created = not self.directory.exists()
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            (self.directory / HOLDER_FILE).write_text(json.dumps(holder), encoding="utf-8")
        except Timeout:
            raise DirectoryLockedError(
                f"{self.directory}: {self._holder()} is training into this directory; "
                "wait for it, stop it, or choose another --out"
            ) from None
        except OSError as error:
            self._lock.release()
            raise LTCError(
                f"{self.directory}: cannot write to this directory ({error.strerror or error}); choose another --out"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a disk that has failed meanwhile: what it did to the run is the error to tell
            (self.directory / HOLDER_FILE).unlink(missing_ok=True)
        self._lock.release()
        with suppress(OSError):
            if self._created and {path.name for path in self.directory.iterdir()} <= {LOCK_FILE}:
                (self.directory / LOCK_FILE).unlink(missing_ok=True)
                self.directory.rmdir()

    def _holder(self) -> str:
        try:
            holder = json.loads((self.directory / HOLDER_FILE).read_text(encoding="utf-8"))
            return f"process {int(holder['pid'])} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


STARTED = "training.json"
"""What a run of ours leaves in its directory before its first step."""

WEIGHTS = ("*.safetensors", "*.bin")
MODEL = ("config.json", "tokenizer.json")


def refuse_other_run(out: Path, resume: bool) -> None:
    """Keep a run from overwriting another one, or the model of another program.

    Args:
        out: Run directory.
        resume: Whether the run in `out` is to go on.

    Raises:
        UsageError: If `out` holds weights, checkpoints, a loss curve, or a model that is not ours; if the run is to go
            on, only if there is something to lose and no checkpoint to go on from.
    """
    if list_checkpoints(out):
        if resume:
            return
        raise UsageError(f"{out} holds a run already: go on with it by --resume, or choose another --out")
    weights = sorted(path.name for pattern in WEIGHTS for path in out.glob(pattern))
    started = (out / STARTED).exists()
    foreign = [] if started else [*weights, *(name for name in MODEL if (out / name).exists())]
    if foreign:
        raise UsageError(f"{out} holds a model already ({foreign[0]}), and no run to go on with: choose another --out")
    if resume and (weights or _was_validated(out / METRICS)):
        raise UsageError(
            f"{out} holds a run that cannot go on: its checkpoints are gone, and starting over would overwrite "
            f"{weights[0] if weights else METRICS}; choose another --out"
        )
    if not resume and (weights or _has_content(out / METRICS)):
        raise UsageError(f"{out} holds a run already: go on with it by --resume, or choose another --out")


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _was_validated(metrics: Path) -> bool:
    """Whether a loss curve reaches a validation, after which there were weights. Before it there is little to lose."""
    if not metrics.exists():
        return False
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("val_loss") is not None:
            return True
    return False
