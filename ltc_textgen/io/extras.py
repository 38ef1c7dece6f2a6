"""Packages that only some commands need: how to install them from where this package runs."""

import shlex
from pathlib import Path


def install_line(extra: str) -> str:
    """The command that installs an extra of this package: from the clone it runs in, or from the index.

    Args:
        extra: Name in pyproject.toml: export, plot, serve...
    """
    clone = Path(__file__).parents[2]
    if (clone / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{clone}[{extra}]')}"
    return f"pip install 'ltc-textgen[{extra}]'"
