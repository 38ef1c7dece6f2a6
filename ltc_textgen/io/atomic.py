"""Atomic writes: after a crash a file or directory is the old one or the new one, never a part."""

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from ltc_textgen.errors import LTCError, UsageError
from ltc_textgen.io.paths import os_reason


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace a file by `content`: written to a temporary file alongside, flushed to disk, then renamed.

    Raises:
        LTCError: If there is no space or no permission; a temporary file is not left behind.
    """
    # A path that is not UTF-8 holds lone surrogates; as \udcXX they are JSON escapes, from which they come back.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary: Path | None = None
    try:
        with create_exclusive(path) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise LTCError(f"cannot write {path}: {os_reason(error, temporary)}") from error


def create_exclusive(path: Path) -> IO[bytes]:
    """A new temporary file in the directory of `path`, open for writing; `name` is its path.

    The name cannot be guessed, and a file or link that is there already is never opened (O_EXCL, O_NOFOLLOW): in a
    directory that comes from a stranger, a link must not lead the write elsewhere.

    Raises:
        OSError: If it cannot be created.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(8)}.tmp")
    return open(temporary, "wb", opener=lambda name, _: os.open(name, flags, 0o666))


def sync(path: Path) -> None:
    """Flush a directory, so that a rename in it survives a power cut; does nothing where the system cannot."""
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
        out: Directory to create. An empty one is replaced.
        marker: Name of a file that every such directory holds.
        overwrite: Replace an `out` that holds the marker. No other directory is ever replaced.

    Raises:
        UsageError: If `out` exists and may not be replaced.
        LTCError: If it cannot be written.
    """
    _check_replaceable(out, marker, overwrite)
    out = out.resolve()  # of a link to a directory, the target is replaced and the link stays
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
        sync(temporary)
        move_directory(temporary, out)
    except OSError as error:
        _undo(temporary, made)
        raise LTCError(f"cannot write {out}: {os_reason(error, out)}") from error
    except BaseException:
        _undo(temporary, made)
        raise


def _check_replaceable(out: Path, marker: str, overwrite: bool) -> None:
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


def move_directory(temporary: Path, out: Path, aside: Path | None = None) -> None:
    """Rename a directory to `out`; a directory of that name is renamed first, and then removed.

    Args:
        temporary: The new directory, on the same file system.
        out: Its name from now on.
        aside: Name of the old one meanwhile; after a crash it may still be there. One of this process if None.

    Raises:
        OSError: If that fails; `out` is then what it was.
    """
    if not out.exists():
        temporary.rename(out)
        sync(out.parent)
        return
    # Not every system can exchange two directories in one call: for a moment there is none.
    aside = out.with_name(f".{out.name}.{os.getpid()}.old") if aside is None else aside
    shutil.rmtree(aside, ignore_errors=True)
    out.rename(aside)
    try:
        temporary.rename(out)
    except OSError:
        aside.rename(out)
        raise
    sync(out.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _undo(temporary: Path, made: list[Path]) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _remove_stale(out: Path) -> None:
    """Remove the temporary directories of processes that no longer run."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)
