"""The engine thread: rows of all models, joined and left between tokens.

Each round gives free slots to waiting rows, reads some tokens of prompts, and draws some tokens of every running row.
Requests, cancellations and the end of the server are noticed between rounds, which take a few milliseconds.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ltc_textgen.errors import LTCError
from ltc_textgen.serve.api_error import ApiError, engine_error
from ltc_textgen.serve.engine import SLICE, Context, Drawn, Engine, Scored
from ltc_textgen.serve.jobs import Channel, Job, Piece, Row
from ltc_textgen.serve.metrics import Metrics
from ltc_textgen.serve.prefix_cache import PrefixCache

MAX_SECONDS = 0.025
"""Longest time that one call of an engine should take: nothing is noticed, and no text shown, before it returns."""

MAX_TOKENS_PER_CALL = 256


@dataclass(eq=False)
class _Task:
    """Other work, and what it has given so far."""

    steps: Iterator[Any]
    future: "Future[list[Any]]"
    results: list[Any] = field(default_factory=list)


class Scheduler:
    """Runs jobs on their engines, in one thread of its own.

    Args:
        slots: Rows that run at the same time.
        queue: Rows that may wait for a slot.
        metrics: Where events are counted.
        cache: States of prompts that were read before.
    """

    def __init__(self, slots: int, queue: int, metrics: Metrics, cache: PrefixCache) -> None:
        self._slots, self._queue = slots, queue
        self._metrics, self._cache = metrics, cache
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._reading: list[Job] = []
        self._running: list[Row] = []
        self._tasks: deque[_Task] = deque()
        self._count = 1
        self._draining = self._aborting = self._closed = self._news = False
        self.failure: str | None = None
        """Why the thread has ended, if it has."""
        self.broken: dict[str, str] = {}
        """Models whose last row failed, and how."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the scheduler's thread."""
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether any row waits or runs."""
        return bool(self._waiting or self._reading or self._running)

    def submit(self, jobs: list[Job]) -> None:
        """Queue the jobs of a request: all of them or, if there is no room, none.

        Raises:
            ApiError: 400 if they can never fit, 429 if the queue is full, 503 if the server ends.
        """
        rows = sum(job.samples for job in jobs)
        if rows > self._slots + self._queue:
            raise ApiError(400, f"{rows} texts at once; this server takes {self._slots + self._queue}", "n")
        with self._changed:
            if self.failure is not None:
                raise engine_error(f"the engine has ended: {self.failure}")
            if self._draining:
                raise ApiError(503, "the server is shutting down", code="draining", headers={"Retry-After": "5"})
            free = self._slots - self._used()
            if rows > max(0, free) + self._queue - sum(job.waiting for job in self._waiting):
                self._metrics.rejected("queue_full")
                message = "the queue is full: try again later"
                raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
            self._waiting.extend(jobs)
            self._notify()

    def run(self, steps: Iterator[Any]) -> "Future[list[Any]]":
        """Do some other work with the models: a step in each round. The future has what the steps gave.

        A future that is cancelled ends the work.
        """
        future: Future[list[Any]] = Future()
        if self.failure is not None:
            raise engine_error(f"the engine has ended: {self.failure}")
        self._tasks.append(_Task(steps, future))
        self.wake()
        return future

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Drop jobs whose client has gone; those that have ended already are not affected."""
        for job in jobs:
            job.cancelled = True
        self.wake()

    def wake(self) -> None:
        """Wake the thread to look for work."""
        with self._changed:
            self._notify()

    def drain(self) -> None:
        """Take no new jobs; those that wait or run continue."""
        self._draining = True

    def abort(self) -> None:
        """End every row at once, with reason "abort"."""
        self._aborting = True
        self.wake()

    def close(self) -> None:
        """End the thread, and wait until it has ended."""
        self._closed = True
        self.wake()
        self._thread.join(timeout=10)

    def _notify(self) -> None:
        self._news = True
        self._changed.notify()

    def _used(self) -> int:
        return len(self._running) + sum(job.started for job in self._reading)

    def _run(self) -> None:
        try:
            while not self._closed:
                self._wait()
                self._drop()
                self._admit()
                self._read()
                self._draw()
                self._step()
                self._metrics.load(self._used(), sum(job.waiting for job in self._waiting))
        except BaseException as error:
            self.failure = f"{type(error).__name__}: {error}"
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """End all waiting and running jobs with an error, because the thread ends."""
        with self._changed:
            left = [(job, range(job.started, job.samples)) for job in self._waiting]
            left += [(job, range(job.started)) for job in self._reading]
            choices = [(job.channel, job.first + number) for job, numbers in left for number in numbers]
            choices += [(row.job.channel, row.index) for row in self._running]
            futures = [task.future for task in self._tasks]
        for future in futures:
            self._settle(future, engine_error("the engine has ended"))
        for channel, index in choices:
            channel.put(Piece(index, error=engine_error(f"the engine has ended: {type(error).__name__}: {error}")))

    def _wait(self) -> None:
        with self._changed:
            while not self._news and not self._active():
                self._changed.wait()
            self._news = False

    def _active(self) -> bool:
        admits = bool(self._waiting) and self._used() < self._slots
        return admits or bool(self._reading or self._tasks) or any(not row.job.channel.full for row in self._running)

    def _drop(self) -> None:
        """Drop cancelled jobs; end all if the server does."""
        with self._changed:
            for job in [job for job in self._waiting if job.cancelled or self._aborting]:
                self._waiting.remove(job)
                self._gone(job, "queue", range(job.started, job.samples))
        for job in [job for job in self._reading if job.cancelled or self._aborting]:
            self._reading.remove(job)
            self._gone(job, "prompt", range(job.started))
        for row in [row for row in self._running if row.job.cancelled or self._aborting]:
            self._leave(row)
            if not row.job.cancelled:
                self._end(row, Piece(row.index, row.text.finish(), reason="abort"))
            else:
                self._metrics.cancelled("decode")

    def _gone(self, job: Job, phase: str, samples: range) -> None:
        for number in samples:
            if job.cancelled:
                self._metrics.cancelled(phase)
            else:
                job.channel.put(Piece(job.first + number, reason="abort"))
                self._metrics.finished(job.model, "abort")

    def _admit(self) -> None:
        """Give free slots to waiting rows, first come first served."""
        now = time.perf_counter()
        with self._changed:
            while self._waiting and (free := self._slots - self._used()) > 0:
                job = self._waiting[0]
                count = min(free, job.waiting)
                if not job.started:
                    self._metrics.queued(job.model, now - job.arrived)
                    self._begin(job)
                self._start(job, count)
                if not job.waiting:
                    self._waiting.popleft()

    def _begin(self, job: Job) -> None:
        job.cached = self._cache.restore(job.keys, job.context)
        self._metrics.prompt(job.model, job.new_tokens, job.cached)

    def _start(self, job: Job, count: int) -> None:
        numbers = range(job.started, job.started + count)
        job.started += count
        if job.context.ready:
            self._running += [job.row(number) for number in numbers]
        elif job not in self._reading:
            self._reading.append(job)

    def _read(self) -> None:
        """Read about one slice of prompts, one job after another."""
        budget = SLICE
        while self._reading and budget > 0:
            job = self._reading.pop(0)
            before = job.context.at
            try:
                job.engine.read(job.context, job.options.elapsed, job.score)
            except Exception as error:
                self._fail(job.model, [(job.channel, job.first + number) for number in range(job.samples)], error)
                job.cancelled, job.started = True, job.samples  # rows that wait have failed too
                continue
            budget -= job.context.at - before
            if job.keys:
                self._cache.keep(job.keys, job.context)
            if job.context.ready:
                self._running += [job.row(number) for number in range(job.started)]
            else:
                self._reading.append(job)

    def _step(self) -> None:
        """One step of the oldest other work."""
        if not self._tasks:
            return
        task = self._tasks.popleft()
        if task.future.cancelled():
            return
        try:
            task.results.append(next(task.steps))
        except StopIteration:
            self._settle(task.future, task.results)
        except Exception as error:
            self._settle(task.future, engine_error(f"{type(error).__name__}: {error}"))
        else:
            self._tasks.append(task)

    @staticmethod
    def _settle(future: "Future[list[Any]]", result: list[Any] | Exception) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _draw(self) -> None:
        """Draw some tokens of every row whose reader keeps up; rows that draw nothing end at once."""
        for row in [row for row in self._running if row.state.options.sampling.max_tokens == 0]:
            self._leave(row)
            self._end(row, Piece(row.index, reason="length", prompt=self._prompt(row)))
        by_engine: dict[int, list[Row]] = {}
        for row in self._running:
            if not row.job.channel.full:
                by_engine.setdefault(id(row.job.engine), []).append(row)
        for rows in by_engine.values():
            self._draw_rows(rows[0].job.engine, rows)

    def _draw_rows(self, engine: Engine, rows: list[Row]) -> None:
        befores = [row.state.context.fork() if row.job.keep_state else None for row in rows]
        start = time.perf_counter()
        try:
            results = engine.draw([row.state for row in rows], self._count)
        except Exception as error:
            for row in rows:
                self._leave(row)
            self._fail(rows[0].job.model, [(row.job.channel, row.index) for row in rows], error)
            return
        seconds = time.perf_counter() - start
        self._metrics.call(len(rows), seconds)
        if seconds > MAX_SECONDS:
            self._count = max(1, self._count // 2)
        elif seconds < MAX_SECONDS / 2:
            self._count = min(2 * self._count, MAX_TOKENS_PER_CALL)
        total, now = 0, time.perf_counter()
        for row, before, result in zip(rows, befores, results, strict=True):
            if isinstance(result, LTCError):
                self._leave(row)
                self._fail(row.job.model, [(row.job.channel, row.index)], result)
            else:
                total += self._push(row, before, result, now)
        self._metrics.generated(rows[0].job.model, total, seconds * len(rows))

    def _push(self, row: Row, before: Context | None, drawn: Drawn, now: float) -> int:
        """Turn drawn tokens into text, and count them; what was drawn after the end is dropped."""
        offsets: list[int] = []
        if drawn.scored is None:
            text, count, reason = row.text.push_all(drawn.tokens)
        else:
            text, count, reason = "", 0, None
            while reason is None and count < len(drawn.tokens):
                offsets.append(row.text.length)
                more, reason = row.text.push(drawn.tokens[count])
                text, count = text + more, count + 1
        taken = drawn if count == len(drawn.tokens) else drawn.first(count)
        prompt = None
        if not row.begun:
            row.begun, prompt = True, self._prompt(row)
            self._metrics.first(row.job.model, now - row.job.arrived)
        stop = row.text.stop or ("separator" if reason == "stop" else None)
        piece = Piece(row.index, text, taken, offsets, reason, stop, prompt)
        if reason is None:
            row.job.channel.put(piece)
            return count
        self._leave(row)
        if before is not None and count < len(drawn.tokens):  # what was drawn after the end is in the state
            row.state.context = reread(row.job, before, taken.tokens)
        self._end(row, piece)
        return count

    def _leave(self, row: Row) -> None:
        """Free the slot of a row for others."""
        self._running.remove(row)
        row.job.engine.release(row.state)

    def _end(self, row: Row, piece: Piece) -> None:
        if row.job.keep_state:
            context = row.state.context
            piece = replace(piece, state=(context.state, context.last))
        assert piece.reason is not None
        self.broken.pop(row.job.model, None)
        self._metrics.finished(row.job.model, piece.reason)
        row.job.channel.put(piece)

    def _fail(self, model: str, choices: list[tuple[Channel, int]], error: Exception) -> None:
        """End choices with an error; the others continue."""
        message = str(error) if isinstance(error, LTCError) else f"{type(error).__name__}: {error}"
        self.broken[model] = message
        for channel, index in choices:
            self._metrics.finished(model, "error")
            channel.put(Piece(index, error=engine_error(message)))

    @staticmethod
    def _prompt(row: Row) -> list[Scored] | None:
        return row.job.context.scored if row.job.score is not None else None


def reread(job: Job, before: Context, taken: Sequence[int]) -> Context:
    """The context after some tokens were drawn, from that before them."""
    ids = np.array([before.last, *taken], np.int64)
    context = Context(before.state, ids)
    while not context.ready:
        job.engine.read(context, job.options.elapsed)
    return context
