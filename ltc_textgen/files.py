"""Files that are there whole or not at all."""

import os
from pathlib import Path

from ltc_textgen.errors import LTCError


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
