"""When a run validates and when it ends: exactly one of epochs, max_steps and time_budget governs.

In a run by steps everything here depends on the step alone. In a run by time it depends on the recorded seconds of
`Progress`, which all processes agree on and a checkpoint keeps. Time is reserved for the last validation, so that
the run ends within its budget.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltc_textgen.config import TrainConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.training.progress import Progress

VALIDATIONS = 20
"""Validations in a run, if they are cheap enough."""

FRACTION = 0.1
"""Part of a run that all its validations together may take."""

FORWARD_SPEEDUP = 2.5
"""Tokens that validation reads in the time in which training reads one; a run by time measures it."""


LENGTHS = ("epochs", "max_steps", "time_budget")
"""Settings of which one sets the length of a run."""


def lengths(train: Mapping[str, Any]) -> list[str]:
    """Which of `LENGTHS` a configuration sets: none or one.

    Raises:
        UsageError: If it sets more.
    """
    given = [name for name in LENGTHS if train.get(name) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: which one says how long the run is?")
    return given


def duration(seconds: float) -> str:
    """A duration as a user writes it, rounded to its two largest units: 80s, 15m, 1h30m."""
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole}s"
    parts = [(whole // 3600, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while parts[0][0] == 0:
        parts.pop(0)
    return "".join(f"{number}{unit}" for number, unit in parts[:2] if number)


@dataclass(frozen=True)
class Budget:
    """What ends a run, and how often it validates.

    Args:
        steps: Steps of the whole run, None if time governs.
        seconds: Seconds of the whole run, None if steps govern.
        eval_steps: Steps between validations; None in a run by time without `eval_steps`.
    """

    steps: int | None
    seconds: float | None
    eval_steps: int | None

    @classmethod
    def plan(cls, config: TrainConfig, steps_per_epoch: int, valid_tokens: int) -> "Budget":
        """The budget that a configuration asks for; one epoch if it names none.

        Raises:
            UsageError: If it names more than one.
        """
        lengths(config.model_dump())
        if config.time_budget is not None:
            return cls(None, config.time_budget, config.eval_steps)
        steps = config.max_steps or (config.epochs or 1) * steps_per_epoch
        tokens_per_step = config.batch_size * config.sequence_length
        affordable = valid_tokens / (FORWARD_SPEEDUP * tokens_per_step) / FRACTION
        every = config.eval_steps or max(1, round(steps / VALIDATIONS), round(affordable))
        return cls(steps, None, every)

    def validations(self, seconds: float | None) -> int:
        """How many validations a run by time makes if one takes so long (None: not known yet); the last included."""
        affordable = math.floor(FRACTION * self._seconds / seconds + 1e-9) if seconds else VALIDATIONS
        return max(1, min(VALIDATIONS, affordable))

    def reserve(self, progress: Progress) -> float:
        """Seconds reserved for the last validation."""
        return progress.validation_seconds or 0.0

    def done(self, progress: Progress) -> float:
        """Fraction of the run that is done, 0 to 1, which the learning rate follows."""
        if self.steps is not None:
            return min(1.0, progress.step / self.steps)
        return min(1.0, progress.seconds / self._stepping_until(progress))

    def is_over(self, progress: Progress) -> bool:
        """Whether no further step fits. A run by time makes at least one."""
        if self.steps is not None:
            return progress.step >= self.steps
        return progress.step > 0 and progress.seconds + 0.5 * progress.step_seconds >= self._stepping_until(progress)

    def validation_is_due(self, progress: Progress) -> bool:
        """Whether to validate now, before the next step. The last validation does not depend on it."""
        if progress.step == 0 or progress.validated_step == progress.step:
            return False
        if self.eval_steps is not None:
            return progress.step % self.eval_steps == 0
        gap = self._seconds / self.validations(progress.validation_seconds)
        remaining = self._stepping_until(progress) - progress.seconds
        return progress.seconds - progress.validated_at >= gap and remaining > gap / 2

    def remaining(self, progress: Progress) -> float | None:
        """Seconds to the end of the run, validations included; None before the first step of a run by steps."""
        if self.steps is None:
            return max(0.0, self._seconds - progress.seconds)
        return progress.seconds / progress.step * (self.steps - progress.step) if progress.step else None

    @property
    def _seconds(self) -> float:
        assert self.seconds is not None, "asked for the seconds of a run by steps"
        return self.seconds

    def _stepping_until(self, progress: Progress) -> float:
        return max(self._seconds - self.reserve(progress), 1e-9)
