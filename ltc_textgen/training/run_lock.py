"""One training run per directory: a lock that the operating system releases, and a check for foreign content.

The lock ends with its holder, however that ends. A directory that holds another run or a model of another program is
not written into.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from ltc_textgen.errors import ArtifactError, LTCError, UsageError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.io.checked import read_json
from ltc_textgen.io.lock import exclusive
from ltc_textgen.io.paths import os_reason, require_no_link
from ltc_textgen.training.checkpoint import CHECKPOINTS, list_checkpoints
from ltc_textgen.training.metrics import METRICS

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock-holder.json"


class DirectoryLockedError(LTCError):
    """Another process trains into the directory. Exit code 1."""


@contextmanager
def lock_run(directory: Path) -> Iterator[None]:
    """Hold a run directory for this process; create it if need be, and remove it again if nothing was put in it.

    The lock is the operating system's, so a killed run leaves nothing to clean up. The holder's process id is written
    alongside it, only for the error message of a second process; a stale one has no effect.

    Raises:
        DirectoryLockedError: If another process holds the directory; the message names its process id.
        LTCError: If the directory cannot be created or written to.
        ArtifactError: If a link leads out of the directory where a run writes.
    """

    def occupied(_: float) -> NoReturn:
        raise DirectoryLockedError(
            f"{directory}: {_holder(directory)} is training into this directory; "
            "wait for it, stop it, or choose another --out"
        )

    created = not directory.exists()
    with ExitStack() as stack:
        if created:
            stack.callback(_remove_if_empty, directory)
        try:
            for written in (LOCK_FILE, METRICS, CHECKPOINTS):
                require_no_link(directory / written)
            stack.enter_context(exclusive(directory / LOCK_FILE, occupied))
            # Replaced and never written into: it may be a link to a file outside.
            write_atomic(directory / HOLDER_FILE, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        except ArtifactError:
            raise
        except OSError as error:
            reason = os_reason(error, directory)
            raise LTCError(f"{directory}: cannot write to this directory ({reason}); choose another --out") from None
        try:
            yield
        finally:
            with suppress(OSError):  # of a disk that has failed meanwhile, the run's own error is the one to report
                (directory / HOLDER_FILE).unlink(missing_ok=True)


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        if {path.name for path in directory.iterdir()} <= {LOCK_FILE}:
            (directory / LOCK_FILE).unlink(missing_ok=True)
            directory.rmdir()


def _holder(directory: Path) -> str:
    try:
        holder = json.loads((directory / HOLDER_FILE).read_text(encoding="utf-8"))
        return f"process {int(holder['pid'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


STARTED = "training.json"
"""File that a run of ours writes before its first step."""

WEIGHTS = ("*.safetensors", "*.bin")
MODEL = ("config.json", "tokenizer.json")


def reject_other_run(out: Path, resume: bool) -> None:
    """Keep a run from overwriting another one, or the model of another program.

    Args:
        out: Run directory.
        resume: Whether the run in `out` is to be resumed.

    Raises:
        UsageError: If `out` holds weights, checkpoints, a loss curve, or a model that is not ours; if the run is
            to be resumed, only if there is something to lose and no checkpoint to resume from.
    """
    if list_checkpoints(out):
        if resume:
            return
        raise UsageError(f"{out} holds a run already: continue it with --resume, or choose another --out")
    weights = sorted(path.name for pattern in WEIGHTS for path in out.glob(pattern))
    started = (out / STARTED).exists()
    # A start that was cut before its first step may have left a model's settings alone: there is nothing to lose.
    ours = started or (not weights and _is_our_config(out / MODEL[0]))
    foreign = [] if ours else [*weights, *(name for name in MODEL if (out / name).exists())]
    if foreign:
        raise UsageError(f"{out} holds a model already ({foreign[0]}), and no run to resume: choose another --out")
    if resume and (weights or _was_validated(out / METRICS)):
        raise UsageError(
            f"{out} holds a run that cannot be resumed: its checkpoints are gone, and starting over would overwrite "
            f"{weights[0] if weights else METRICS}; choose another --out"
        )
    if not resume and (weights or _has_content(out / METRICS)):
        raise UsageError(f"{out} holds a run already: continue it with --resume, or choose another --out")


def _is_our_config(path: Path) -> bool:
    try:
        return path.is_file() and read_json(path).get("model_type") == "ltc"
    except ArtifactError:
        return False


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _was_validated(metrics: Path) -> bool:
    """Whether a loss curve holds a validation, with which the first weights were written."""
    if not metrics.exists():
        return False
    # Not splitlines(): JSON may hold U+2028 and others at which that would cut.
    for line in metrics.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("val_loss") is not None:
            return True
    return False
