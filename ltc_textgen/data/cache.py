"""Where token files and texts of the hub are kept: the cache directory."""

import os
import tempfile
from pathlib import Path

from ltc_textgen.errors import DataError
from ltc_textgen.io.paths import os_reason, user_path


def cache_directory() -> Path:
    """The cache directory: LTC_CACHE, or ~/.cache/ltc-textgen, or a private temporary one for a user without a home.

    Raises:
        DataError: If a temporary directory is needed, and another user owns the one of that name.
    """
    if wanted := os.environ.get("LTC_CACHE"):
        return user_path(wanted)
    try:
        return Path.home() / ".cache" / "ltc-textgen"
    except RuntimeError:  # no HOME, and no entry in the password file
        return _temporary()


def _temporary() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(tempfile.gettempdir()) / f"ltc-textgen-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        reason = os_reason(error, path)
        raise DataError(f"there is no home directory, and {path} cannot be used ({reason}): set LTC_CACHE") from error
    if path.is_symlink() or (hasattr(os, "getuid") and status.st_uid != user):
        raise DataError(f"there is no home directory, and {path} belongs to another user: set LTC_CACHE")
    return path
