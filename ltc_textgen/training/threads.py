"""How many CPU threads a step uses: all, or one where that is faster.

Threads divide each operation and wait for the slowest of them. Where another program keeps a core busy, or the
operations are small, one thread is faster than all. Both are measured on steps whose gradients are dropped, at the
start of a run and again when its speed has dropped; weights, states and random numbers stay as they are.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from ltc_textgen.training.session import Session
from ltc_textgen.training.step import try_step

REPEATS, SECONDS = 3, 1.0
"""Steps that are measured with each number of threads, and the time after which no further one is."""

MARGIN = 1.05
"""One thread is taken if all are slower by this factor: another number of threads gives other roundings."""

DROP = 0.5
"""Fraction of the measured speed below which a run measures again."""

PAUSE = 30.0
"""Least seconds between two measurements."""


@dataclass
class ThreadChoice:
    """Chooses the threads of a run.

    Args:
        session: The run.
        most: Threads that may be used.
        free: Whether there is a choice: one process, on a CPU, and the user named no number.
        step_seconds: Time of a step with the threads that were chosen; None before a measurement.
        measured_at: Seconds of the run at the last measurement.
        clock: In seconds.
    """

    session: Session
    most: int
    free: bool
    step_seconds: float | None = None
    measured_at: float = 0.0
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def of(cls, session: Session) -> "ThreadChoice":
        """The choice that a run has."""
        return cls(session, session.runtime.usable_threads, session.runtime.chooses_threads)

    def measure(self, choose: bool = True) -> None:
        """Measure a step with one thread and with all, and keep the faster; or with the threads that are set.

        Args:
            choose: Whether the number may change. Not on resuming, so that the same bits come out.
        """
        try_step(self.session)  # the first of anything is slow
        if not (self.free and choose):
            self.step_seconds = self._time(self.session.runtime.threads)
            return
        seconds = {threads: self._time(threads) for threads in (self.most, 1)}
        chosen = 1 if seconds[self.most] > MARGIN * seconds[1] else self.most
        self.session.runtime.use_threads(chosen)
        self.step_seconds, self.measured_at = seconds[chosen], self.session.progress.seconds
        tokens = self.session.run.train.batch_size * self.session.run.train.sequence_length
        one, every = (f"{tokens / max(seconds[threads], 1e-9):,.0f}" for threads in (1, self.most))
        self.session.reporter.note(
            f"threads: {chosen} ({one} tokens/s with 1, {every} with {self.most}; --threads sets a number)"
        )

    def watch(self, tokens_per_second: float) -> None:
        """Measure again if the run has become much slower than measured."""
        if not self.free or self.step_seconds is None:
            return
        tokens = self.session.run.train.batch_size * self.session.run.train.sequence_length
        recently = self.session.progress.seconds - self.measured_at < PAUSE
        if tokens_per_second < DROP * tokens / self.step_seconds and not recently:
            self.session.reporter.note(f"the speed dropped to {tokens_per_second:,.0f} tokens/s: measuring again")
            self.measure()

    def _time(self, threads: int) -> float:
        """Median seconds of a step."""
        before = self.session.runtime.threads
        self.session.runtime.use_threads(threads)
        taken: list[float] = []
        while len(taken) < REPEATS and sum(taken) < SECONDS:
            start = self.clock()
            try_step(self.session)
            taken.append(self.clock() - start)
        self.session.runtime.use_threads(before)
        return median(taken)
