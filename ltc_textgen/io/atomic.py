"""Files that are there whole or not at all.

A directory that is there whole or not at all.
"""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from ltc_textgen.errors import LTCError, UsageError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that after a crash there is the old one or the new one, never a part.

    Raises:
        LTCError: If there is no space or no permission; a temporary file is not left behind.
    """
    # A path that is not UTF-8 holds lone surrogates; as \udcXX they are JSON escapes, from which they come back.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LTCError(f"cannot write {path}: {error.strerror or error}") from error


def sync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no directories
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_directory(out: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """A temporary directory that becomes `out` when the `with` ends, and is removed if it ends with an error.

    Args:
        out: Directory to make. One that is empty is replaced.
        marker: File that every such directory holds.
        overwrite: Replace an `out` that holds the marker; no other directory is ever replaced.

    Raises:
        UsageError: If `out` is taken.
        LTCError: If it cannot be written.
    """
    _refuse_taken(out, marker, overwrite)
    out = out.resolve()  # of a link to a directory, that is replaced and the link stays
    made = [parent for parent in out.parents if not parent.exists()]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(temporary)
        _move(temporary, out)
        sync_directory(out.parent)
    except OSError as error:
        _undo(temporary, made)
        raise LTCError(f"cannot write {out}: {error.strerror or error}") from error
    except BaseException:
        _undo(temporary, made)
        raise


def _refuse_taken(out: Path, marker: str, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UsageError(f"--out {out}: it exists and is no directory")
    if not any(out.iterdir()):
        return
    if not (out / marker).is_file():
        raise UsageError(f"--out {out}: it holds other files; give a directory that is new or empty")
    if not overwrite:
        raise UsageError(f"--out {out}: an export is there already; give another directory, or --overwrite")


def _move(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    # Two directories cannot be exchanged in one call everywhere: for a moment there is none.
    before = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(before)
    try:
        temporary.rename(out)
    except OSError:
        before.rename(out)
        raise
    shutil.rmtree(before)


def _undo(temporary: Path, made: list[Path]) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _remove_stale(out: Path) -> None:
    """Remove what a killed export left behind."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)
