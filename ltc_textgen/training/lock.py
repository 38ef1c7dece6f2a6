"""One training run per directory: a lock that the operating system drops when its holder dies, however it dies."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from ltc_textgen.errors import LTCError

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
