"""A lock between processes, which the operating system releases when its holder ends, however it ends."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive(path: Path, waiting: Callable[[float], None] | None = None, interval: float = 1.0) -> Iterator[None]:
    """Hold the lock file `path` while the `with` runs; its directory is created if need be.

    Args:
        path: Lock file. It is not removed, since another process may be opening it.
        waiting: Called with the seconds waited so far while another process holds the lock, first at once. What it
            raises ends the waiting.
        interval: Seconds between two calls of `waiting`.

    Raises:
        OSError: If the lock file cannot be created or opened; `filename` names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, start, timeout = FileLock(path), time.monotonic(), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            if waiting is not None:
                waiting(time.monotonic() - start)
            timeout = interval
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield
    finally:
        lock.release()
