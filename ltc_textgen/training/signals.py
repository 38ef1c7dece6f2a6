"""Stopping by signal: SIGINT, SIGTERM and SIGHUP ask the loop to stop after its step; a second one ends the process."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

ECHO_SECONDS = 2.0
"""Under a launcher (torchrun), Ctrl-C reaches a process twice: from the terminal and from the launcher. A signal that
follows the first one this closely is the same request there."""


class StopRequest:
    """While entered, catches SIGINT, SIGTERM and SIGHUP (a terminal that is closed) and remembers the first.

    Under `nohup`, SIGHUP stays ignored. Only the main thread may set handlers; entered in another thread, it catches
    nothing and never asks to stop.

    Args:
        on_signal: Called with the name of the first signal, to report that the run is about to stop.
        launched: Whether a launcher started this process and may repeat a signal.
    """

    def __init__(self, on_signal: Callable[[str], None] | None = None, *, launched: bool | None = None) -> None:
        self.number: int | None = None
        self._on_signal = on_signal
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ if launched is None else launched
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def name(self) -> str | None:
        """Name of the first signal received, such as SIGTERM; None before."""
        return None if self.number is None else signal.Signals(self.number).name

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            caught = [
                n for n in SIGNALS if n in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(n) != signal.SIG_IGN
            ]
            self._previous = {number: signal.signal(number, self._receive) for number in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._received_at = number, now
            if self._on_signal:
                with suppress(RuntimeError):  # the signal came while the same stream was being written to
                    self._on_signal(signal.Signals(number).name)
            return
        if self._launched and now - self._received_at < ECHO_SECONDS:
            return
        # The operating system's own action: it also ends a process that Python cannot unwind (a stuck collective),
        # and the shell sees exit status 130 or 143.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def exit_code(name: str) -> int:
    """Exit code of a process that a signal stopped: 128 + its number (SIGINT 130, SIGTERM 143, SIGHUP 129)."""
    return 128 + signal.Signals[name].value
