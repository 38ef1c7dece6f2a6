"""A corpus learned by heart: training loss falls, validation loss rises. Told when it shows, and at the end."""

from dataclasses import asdict, dataclass
from typing import Any

from ltc_textgen.training.progress import Progress
from ltc_textgen.training.report import Reporter

IN_A_ROW = 3
"""Validations in a row above the best one after which the user is told."""

RISE = 0.01
"""A validation loss counts as risen when it is above the best by this share."""

WIDE = 0.25
"""A gap of this share of the validation loss is wide."""

ADVICE = "more text, more model.dropout, a smaller model or a shorter run would help"


@dataclass(frozen=True)
class Memorisation:
    """How far a model has learned its training text by heart.

    Args:
        gap: Validation loss minus recent training loss at the last validation, nats per token. (Dropout makes the
            training loss higher than it would be without.)
        risen: How much the last validation loss is above the best, nats per token.
        advice: One line for the user; None if there is nothing to say.
    """

    gap: float
    risen: float
    advice: str | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def memorisation(
    val_loss: float | None, train_loss: float | None, best_loss: float | None, best_step: int | None
) -> Memorisation | None:
    """Judge a run by its last validation, and its best; None without a validation and a training loss."""
    if val_loss is None or train_loss is None or best_loss is None:
        return None
    gap, risen = val_loss - train_loss, val_loss - best_loss
    advice = None
    if risen > RISE * best_loss and gap > 0:
        advice = (
            f"memorised: since step {best_step} the validation loss rose from {best_loss:.3f} to {val_loss:.3f}, the "
            f"training loss is {train_loss:.3f} (gap {gap:.3f}); the weights of step {best_step} are kept; {ADVICE}"
        )
    elif gap > WIDE * val_loss:
        advice = (
            f"memorising: the training loss {train_loss:.3f} is {gap:.3f} below the validation loss {val_loss:.3f}; "
            f"{ADVICE}"
        )
    return Memorisation(gap, risen, advice)


def watch(progress: Progress, reporter: Reporter) -> None:
    """After a validation: count those in a row that were worse than the best, and tell once per row."""
    found = memorisation(progress.val_loss, progress.train_loss, progress.best_loss, progress.best_step)
    worse = found is not None and found.risen > RISE * (progress.best_loss or 0.0) and found.gap > 0
    progress.rising = progress.rising + 1 if worse else 0
    if found and progress.rising == IN_A_ROW:
        reporter.note(f"step {progress.step}: {found.advice}")
