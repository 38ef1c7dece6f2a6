"""Downloads in a child process, which is ended when no more data arrives.

The hub's libraries wait for minutes when a server accepts a request and then hangs, and their threads cannot be
stopped. The process only fills the caches, which are then read without a network.

    python -c "from ltc_textgen.data import hub; hub.fetch(kind, name, column)"
        -> {"ready": true}      when the libraries are imported
        -> {"arrived": true}    for each block of a stream
        -> {"reason": "..."}    if it fails, with exit code 1
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ltc_textgen.errors import DataError

FIRST = 5.0
"""Seconds from the request until the first byte must arrive."""

STALL = 30.0
"""Seconds without progress after which a download is ended."""

LOOK = 0.25
"""Seconds between two checks of a download's progress."""

NO_PAYLOAD = {"refs", ".locks", ".no_exist", "snapshots", "CACHEDIR.TAG", ".gitignore"}
"""Folders and files of the hub's cache that are written before any data has arrived."""


def download(kind: str, name: str, column: str, caches: list[Path]) -> None:
    """Fill the caches.

    Args:
        kind: What is wanted; see `hub.fetch`.
        name: Its identifier.
        column: The column of a text.
        caches: Folders whose size grows with the download.

    Raises:
        DataError: If it fails, or makes no progress for too long; the message is the reason alone.
    """
    code = f"from ltc_textgen.data import hub; hub.fetch({kind!r}, {name!r}, {column!r})"
    # Without these, each retry is logged before the failure; Xet writes late, so a slow download seems to stall;
    # and PyTorch is imported needlessly, which takes seconds.
    defaults = {"HF_HUB_VERBOSITY": "critical", "HF_HUB_DISABLE_XET": "1", "USE_TORCH": "0"}
    environment = {**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    lines: list[dict[str, Any]] = []
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        _watch(process, lines, caches)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(1.0)
    if process.returncode:
        reasons = [line["reason"] for line in lines if "reason" in line]
        raise DataError(reasons[-1] if reasons else f"the download ended with code {process.returncode}")


def _watch(process: subprocess.Popen[str], lines: list[dict[str, Any]], caches: list[Path]) -> None:
    start = _size(caches)
    seen, moved, arrived = (start, 0), time.monotonic(), False
    while process.poll() is None:
        time.sleep(LOOK)
        now = (_size(caches), len(lines))
        if now != seen:
            arrived = arrived or now[0] != start or any("arrived" in line for line in lines)
            seen, moved = now, time.monotonic()
        patience = FIRST if lines and not arrived else STALL
        if time.monotonic() - moved > patience:
            what = "the download has stalled" if arrived else "it accepts requests, but sends nothing"
            raise DataError(f"{what} (for {patience:g} s)")


def _read(process: subprocess.Popen[str], lines: list[dict[str, Any]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") and line.endswith("}\n"):  # the last may be cut off, when the process is ended
            lines.append(json.loads(line))


def _size(folders: list[Path]) -> int:
    """Bytes of all downloaded files and files derived from them; one that vanishes meanwhile is not counted."""
    total = 0
    for folder in folders:
        for directory, folders_in_it, names in os.walk(folder):
            folders_in_it[:] = [name for name in folders_in_it if name not in NO_PAYLOAD]
            for name in names:
                if name in NO_PAYLOAD:
                    continue
                try:
                    total += os.lstat(os.path.join(directory, name)).st_size  # noqa: PTH118
                except OSError:
                    continue
    return total
