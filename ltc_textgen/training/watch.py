"""Time and signals as all processes see them: the seconds of the main one, and a signal that any of them received."""

import time
from collections.abc import Callable

from ltc_textgen.training.session import Session
from ltc_textgen.training.signals import SIGNALS, StopRequest


class Watch:
    """Counts the seconds of a run, interruptions left out, and keeps `Progress.seconds` equal in all processes.

    Args:
        stop: Catches the signals of this process.
        seconds: What the run has used before, from its checkpoint.
        clock: A monotonic clock in seconds: neither a changed date nor summer time moves it.
    """

    def __init__(self, stop: StopRequest, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop, self._clock = stop, clock
        self._zero = clock() - seconds

    def share(self, session: Session, finite: bool, loss: float) -> tuple[bool, float, str | None]:
        """Agree about a step, in one collective; advances `progress.seconds` and `stepping_seconds`.

        Args:
            session: The run.
            finite: Whether this process's loss and gradient are.
            loss: This process's mean loss, over as many tokens as every other's.

        Returns:
            Whether the step is broken in any process, the mean loss over all, and the name of a signal received.
        """
        runtime, progress = session.runtime, session.progress
        received = [float(self._stop.number == number) for number in SIGNALS]
        mine = [float(not finite), loss / runtime.world if finite else 0.0, *received, self._main_seconds(session)]
        broken, mean, *counts, seconds = runtime.sum(mine)
        progress.stepping_seconds += seconds - progress.seconds if progress.step else 0.0
        progress.window_seconds += seconds - progress.seconds
        progress.seconds = seconds
        names = [number.name for number, count in zip(SIGNALS, counts, strict=True) if count]
        return broken > 0, mean, names[0] if names else None

    def lap(self, session: Session, value: float = 0.0) -> tuple[float, float]:
        """Advance `progress.seconds` by what was no step, and share a number of the main process.

        Returns:
            Seconds since the last call, and the main process's `value`.
        """
        before = session.progress.seconds
        mine = [self._main_seconds(session), value if session.runtime.is_main else 0.0]
        session.progress.seconds, shared = session.runtime.sum(mine, patiently=True)
        return session.progress.seconds - before, shared

    def signal_received(self, session: Session) -> str | None:
        """Name of a signal that this process received. Several processes only act on one that `share` has told all."""
        return self._stop.name if session.runtime.world == 1 else None

    def _main_seconds(self, session: Session) -> float:
        return self._clock() - self._zero if session.runtime.is_main else 0.0
