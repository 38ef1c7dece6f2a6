"""Where what was made once is kept."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Where token files and texts of the hub are kept: LTC_CACHE, or ~/.cache/ltc-textgen."""
    return Path(os.environ.get("LTC_CACHE") or Path.home() / ".cache" / "ltc-textgen").expanduser()
