"""Paths that a user names, and what the operating system says about them."""

import os
import stat
from pathlib import Path

from ltc_textgen.errors import ArtifactError, UsageError

DEMO = Path(__file__).parents[1] / "demo"
"""Run directory of the small model that comes with the package."""


def user_path(path: str | Path) -> Path:
    """A path as a user wrote it, with a leading `~` or `~name` replaced by the home directory.

    Raises:
        UsageError: If that home directory is not known, or the path holds a NUL character.
    """
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r}: a path holds no NUL character")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0][1:]
        why = f"there is no user '{user}'" if user else "HOME is not set"
        raise UsageError(f"{path}: the home directory is not known ({why}): write the whole path") from None


def run_path(path: str | Path) -> Path:
    """A run directory as a user named it: `demo` is the model of the package, unless there is a directory `demo`.

    Raises:
        UsageError: As `user_path`.
    """
    found = user_path(path)
    return DEMO if found == Path("demo") and not found.exists() else found


def os_reason(error: OSError, named: Path | None = None) -> str:
    """Why a call of the operating system failed: one phrase, with the file where that is not `named`.

    Args:
        error: What was raised.
        named: The path that the surrounding message names already.
    """
    reason = error.strerror or str(error) or type(error).__name__
    file = error.filename
    if file is None or isinstance(file, int) or (named is not None and os.fspath(file) == os.fspath(named)):
        return reason
    return f"{reason}: {os.fsdecode(file)}"


def require_no_link(path: Path) -> None:
    """Keep a directory that comes from a stranger from leading what is written to it elsewhere.

    Raises:
        ArtifactError: If `path` is a symbolic link.
    """
    if path.is_symlink():
        raise ArtifactError(
            f"{path} is a link to {str(path.readlink())!r}, and nothing is written through it: put the file itself "
            "there, as `cp -rL` does"
        )


def special_file(path: Path) -> str | None:
    """What a path is if it is no regular file: a directory, a named pipe, a device or a socket; None for a file.

    Raises:
        OSError: If there is no such path, or it cannot be accessed.
    """
    mode = path.stat().st_mode
    kinds = {
        "a directory": stat.S_ISDIR,
        "a named pipe": stat.S_ISFIFO,
        "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
        "a socket": stat.S_ISSOCK,
    }
    return next((kind for kind, matches in kinds.items() if matches(mode)), None)
