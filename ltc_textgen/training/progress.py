"""How far a run has come: the numbers that a checkpoint keeps alongside the tensors."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ltc_textgen.errors import ArtifactError

FADING = 0.99

FALLING = 0.003
"""Part of the loss that the last validation must have gained for the run to be worth extending."""

Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Number = Annotated[float, Field(strict=True, ge=0, le=1e15)]


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
        gained: How much lower the last validation loss was than the lowest before; None unless it was.
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

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False, extra="ignore")

    step: Count = 0
    seconds: Number = 0.0
    stepping_seconds: Number = 0.0
    tokens: Count = 0
    validated_step: Annotated[int, Field(strict=True, ge=-1, le=2**53)] = -1
    validated_at: Number = 0.0
    validation_seconds: Number | None = None
    valid_tokens: Count | None = None
    val_loss: Number | None = None
    best_loss: Number | None = None
    best_step: Count | None = None
    gained: Number | None = None
    skipped: Count = 0
    skipped_in_a_row: Count = 0
    window_loss: Number = 0.0
    window_steps: Count = 0
    window_seconds: Number = 0.0
    recent_sum: Number = 0.0
    recent_weight: Number = 0.0
    train_loss: Number | None = None
    learning_rate: Number = 0.0
    lowest_loss: Number | None = None
    halved_from: Number | None = None
    halved_at: Count | None = None
    rising: Count = 0
    metrics_bytes: Count = 0

    @property
    def still_falling(self) -> bool:
        """Whether the last validation was clearly better than all before."""
        return self.gained is not None and self.val_loss is not None and self.gained > FALLING * self.val_loss

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
        """Reset the best loss and step, as on a text whose losses cannot be compared with earlier ones."""
        self.validated_step, self.validation_seconds, self.val_loss = -1, None, None
        self.valid_tokens = None
        self.best_loss = self.best_step = self.gained = self.lowest_loss = None
        self.recent_sum = self.recent_weight = 0.0
        self.rising = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """The inverse of `to_dict`; keys of later versions are left out.

        Raises:
            ArtifactError: If a value is of another type, not finite, negative or beyond what a run can reach.
        """
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, problem["loc"]))
            raise ArtifactError(f"progress: {name}: {problem['msg']}, got {str(problem['input'])[:40]}") from None
