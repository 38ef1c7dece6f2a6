"""The list of faults, and what each of them has to work with."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from training_runs import Listener, assert_same_run, settings, write_corpus

from ltc_textgen.config import RunConfig
from ltc_textgen.training.loop import train
from ltc_textgen.training.report import Pace

STEPS = 60


class MissError(Exception):
    """What was got is not what was expected."""


class NotHereError(Exception):
    """This machine does not let the fault be caused."""


@dataclass
class Place:
    """Where a fault does its work.

    Args:
        root: Folder of the whole session.
        kills: How often each kind of kill is repeated.
    """

    root: Path
    kills: int = 20
    corpus: Path = field(init=False)
    draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.corpus = write_corpus(self.root)
        self.draw = random.Random(time.time_ns())
        self._whole: Path | None = None
        self._made = 0

    def fresh(self) -> Path:
        """A new folder."""
        self._made += 1
        path = self.root / f"place-{self._made}"
        path.mkdir()
        return path

    def plan(self, **given: object) -> RunConfig:
        """A run in which steps, checkpoints, validations and the ends of epochs fall on different steps."""
        values = {"max_steps": STEPS, "eval_steps": 25, "save_steps": 3, "learning_rate": 0.02, "batch_size": 16}
        return settings(self.corpus, **{**values, **given})

    def whole(self) -> Path:
        """That run, uninterrupted."""
        if self._whole is None:
            self._whole = self.fresh() / "run"
            train(self.plan(), self._whole, reporter=Listener())
        return self._whole

    def stopped(self, step: int, out: Path) -> None:
        """Begin that run and stop it after a step, which leaves a checkpoint of it."""

        def stop(pace: Pace) -> None:
            if pace.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        train(self.plan(), out, reporter=Listener(stop))

    def same(self, out: Path) -> str:
        """Hold a finished run against the uninterrupted one: weights, moments, states and the loss curve."""
        try:
            assert_same_run(out, self.whole())
        except (AssertionError, OSError) as error:
            raise MissError(f"not the same run: {error}") from None
        return "same weights to the bit"

    def finish(self, out: Path) -> str:
        """Resume a run to its end, and hold it against the uninterrupted one."""
        train(self.plan(), out, resume=True, reporter=Listener())
        return self.same(out)


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    row: int
    name: str
    expected: str
    cause: Callable[[Place], str]


FAULTS: list[Fault] = []


def fault(row: int, name: str, expected: str) -> Callable[[Callable[[Place], str]], Callable[[Place], str]]:
    """Put a function into the table: it causes the fault and returns what it got, or raises one of the errors above."""

    def register(cause: Callable[[Place], str]) -> Callable[[Place], str]:
        FAULTS.append(Fault(row, name, expected, cause))
        return cause

    return register


def expect(condition: object, got: object) -> None:
    """Miss unless `condition`."""
    if not condition:
        raise MissError(str(got))
