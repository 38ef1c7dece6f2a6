"""How far a run has come: the numbers that a checkpoint keeps alongside the tensors."""

from dataclasses import asdict, dataclass, fields
from typing import Any

FADING = 0.99


@dataclass
class Progress:
    """Counters of a run. Equal on all processes, so that all of them decide alike.

    Args:
        step: Optimizer steps done, skipped ones included.
        seconds: Time since the run began, validations and checkpoints included, interruptions not.
        stepping_seconds: The part of `seconds` that was spent in steps, but for the first, which is never typical.
        tokens: Training tokens read.
        validated_step: Step of the last validation; -1 before the first.
        validated_at: `seconds` after the last validation.
        validation_seconds: What the last validation took, or before the first what it may take; None if unknown.
        valid_tokens: Tokens from the beginning of the validation text that are scored; None for all.
        val_loss: Loss of the last validation, nats per token.
        best_loss: Lowest validation loss so far, nats per token.
        best_step: Step of the lowest validation loss.
        skipped: Steps skipped because a number in them was not finite.
        skipped_in_a_row: The last so many steps were skipped.
        window_loss: Sum of the losses since the last line in metrics.jsonl.
        window_steps: Steps in that sum.
        window_seconds: Time in steps since then.
        recent_sum: Sum of all losses, each weighing `FADING` times as much as the next.
        recent_weight: Sum of those weights.
        train_loss: Recent training loss at the last validation, nats per token.
        learning_rate: Of the last step.
        lowest_loss: Lowest recent training loss (see `monitor`).
        halved_from: Peak learning rate that diverged and is halved; None if none is.
        halved_at: Step of that.
        rising: Validations in a row that were worse than the best (see `monitor`).
        metrics_bytes: Length of metrics.jsonl.
    """

    step: int = 0
    seconds: float = 0.0
    stepping_seconds: float = 0.0
    tokens: int = 0
    validated_step: int = -1
    validated_at: float = 0.0
    validation_seconds: float | None = None
    valid_tokens: int | None = None
    val_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    skipped: int = 0
    skipped_in_a_row: int = 0
    window_loss: float = 0.0
    window_steps: int = 0
    window_seconds: float = 0.0
    recent_sum: float = 0.0
    recent_weight: float = 0.0
    train_loss: float | None = None
    learning_rate: float = 0.0
    lowest_loss: float | None = None
    halved_from: float | None = None
    halved_at: int | None = None
    rising: int = 0
    metrics_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Training speed over the whole run, validations and the first step left out; 0 before the second step."""
        return self.tokens / self.step / self.step_seconds if self.step_seconds > 0 else 0.0

    @property
    def step_seconds(self) -> float:
        """Mean time of a step, the first left out; 0 before the second."""
        return self.stepping_seconds / (self.step - 1) if self.step > 1 else 0.0

    @property
    def recent_loss(self) -> float | None:
        """Mean training loss of about the last hundred steps, to compare a validation loss with."""
        return self.recent_sum / self.recent_weight if self.recent_weight else None

    def add_loss(self, loss: float) -> None:
        """Count the loss of a step that was not skipped."""
        self.window_loss, self.window_steps = self.window_loss + loss, self.window_steps + 1
        self.recent_sum, self.recent_weight = FADING * self.recent_sum + loss, FADING * self.recent_weight + 1

    def forget_validations(self) -> None:
        """Forget the best weights so far, as on a text whose losses cannot be compared with earlier ones."""
        self.validated_step, self.validation_seconds, self.val_loss = -1, None, None
        self.valid_tokens = None
        self.best_loss = self.best_step = self.lowest_loss = None
        self.recent_sum = self.recent_weight = 0.0
        self.rising = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """The inverse of `to_dict`; keys of later versions are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})
