"""Divergence and overfitting: detected from the losses of a run.

A run has *diverged* when its recent training loss, the mean over about a hundred steps,

* has lost a third of what it had gained: it is above low + (ln V - low) / 3, where low is the lowest recent loss so far
  and ln V the loss of a uniform distribution over the vocabulary; or
* is above ln V although the warm-up and `LEARNS` steps are over: the network never learned anything.

So neither a spike nor a difficult passage counts. At the first divergence the learning rate is halved for the rest of
the run; the weights stay, since a recurrent network mostly recovers. At the second the run ends. The counters are part
of `Progress`, so a resumed run does the same. Resuming with another learning rate resets them.

A run *overfits* when the training loss falls while the validation loss rises. It is reported when it appears, and at
the end.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from ltc_textgen.errors import LTCError
from ltc_textgen.training.progress import Progress
from ltc_textgen.training.report import Reporter
from ltc_textgen.training.session import Session

SETTLED = 18.0
"""Weight of the recent loss (that of 20 steps) above which it is a usable mean."""

LEARNS = 300
"""Steps that a run may take until it is better than guessing."""

LOST = 1 / 3
"""Fraction of the improvement over guessing that may be lost."""


class DivergedError(LTCError):
    """Training lost what it had learned, with the halved learning rate too. Exit code 1."""


def rate_scale(progress: Progress, learning_rate: float) -> float:
    """What the learning rate is multiplied by: 0.5 after a divergence with this peak, else 1."""
    return 0.5 if progress.halved_from == learning_rate else 1.0


def check(session: Session) -> None:
    """Examine the loss after a step. All processes decide the same, from the same losses.

    Raises:
        DivergedError: At the second divergence.
    """
    config, progress = session.run.train, session.progress
    warm = session.budget.done(progress) > config.warmup_ratio
    found = judge(progress, config.learning_rate, math.log(session.model.settings.vocabulary), warm, str(session.out))
    if found:
        session.reporter.note(found)


def judge(progress: Progress, learning_rate: float, guessing: float, warm: bool, out: str) -> str | None:
    """Notice a divergence in `progress`, and halve the rate there.

    Args:
        progress: After a step.
        learning_rate: Peak that the run has now.
        guessing: ln V, nats per token.
        warm: Whether the warm-up is over.
        out: The run directory, for the error.

    Returns:
        A note for the user at the first divergence; None otherwise.

    Raises:
        DivergedError: At the second.
    """
    late = warm and progress.step - (progress.halved_at or 0) > LEARNS
    if _limit(progress, guessing, late) is None:
        return None
    recent, low = progress.recent_loss or 0.0, progress.lowest_loss
    what = (
        f"the training loss is {recent:.3f} nats, above the {guessing:.3f} that guessing costs"
        if low is None or low >= guessing
        else f"the training loss rose from {low:.3f} to {recent:.3f} nats"
    )
    if progress.halved_from == learning_rate:
        best = (
            "no weights are" if progress.best_step is None else f"the best weights, of step {progress.best_step}, are"
        )
        raise DivergedError(
            f"{out}: stopped at step {progress.step}: {what}, though the learning rate had been halved at step "
            f"{progress.halved_at}; {best} in the run directory. Train again with a learning_rate well below "
            f"{learning_rate / 2:g}"
        )
    progress.halved_from, progress.halved_at = learning_rate, progress.step
    progress.lowest_loss, progress.recent_sum, progress.recent_weight = None, 0.0, 0.0
    return (
        f"step {progress.step}: {what}: the learning rate is halved for the rest of the run; if it diverges again, the "
        "run ends"
    )


def _limit(progress: Progress, guessing: float, late: bool) -> float | None:
    """The bound that the recent loss exceeds, None if it exceeds none; records the lowest recent loss."""
    recent = progress.recent_loss
    if recent is None or progress.recent_weight < SETTLED:
        return None
    low = progress.lowest_loss
    if low is None or recent < low:
        progress.lowest_loss = low = recent
    if low < guessing:
        limit = low + LOST * (guessing - low)
        return limit if recent > limit else None
    return guessing if late and recent > guessing else None


IN_A_ROW = 3
"""Validations in a row above the best one after which it is reported."""

RISE = 0.01
"""A validation loss counts as risen when it is above the best by this fraction."""

WIDE = 0.25
"""A gap of this fraction of the validation loss is wide."""

ADVICE = "more text, more model.dropout, a smaller model or a shorter run would help"


@dataclass(frozen=True)
class Memorisation:
    """How far a model overfits its training text.

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
        """The fields as a dictionary of JSON values."""
        return asdict(self)


def memorisation(
    val_loss: float | None,
    train_loss: float | None,
    best_loss: float | None,
    best_step: int | None,
    *,
    unlike: bool = False,
) -> Memorisation | None:
    """Judge a run by its last validation, and its best; None without a validation and a training loss.

    Args:
        val_loss: Validation loss of the last validation, nats per token.
        train_loss: Recent training loss then.
        best_loss: Lowest validation loss.
        best_step: Step of that.
        unlike: Whether the validation text is of another kind than the training text (see `data.split_comparison`): a
            gap then measures the difference of the texts, and says nothing on memorization.
    """
    if val_loss is None or train_loss is None or best_loss is None:
        return None
    gap, risen = val_loss - train_loss, val_loss - best_loss
    advice = None
    if unlike:
        if gap > WIDE * val_loss:
            advice = (
                f"the validation loss {val_loss:.3f} is {gap:.3f} above the training loss {train_loss:.3f}: the "
                "validation text is unlike the training text, so this does not show whether the model overfits; "
                "shuffle the documents, or give another text with --valid"
            )
    elif risen > RISE * best_loss and gap > 0:
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


def watch(progress: Progress, reporter: Reporter, unlike: bool = False) -> None:
    """After a validation: count those in a row that were worse than the best, and report once per row.

    Args:
        progress: After the validation.
        reporter: Gets the note.
        unlike: As in `memorisation`; nothing is said then.
    """
    found = memorisation(progress.val_loss, progress.train_loss, progress.best_loss, progress.best_step)
    worse = not unlike and found is not None and found.risen > RISE * (progress.best_loss or 0.0) and found.gap > 0
    progress.rising = progress.rising + 1 if worse else 0
    if found and progress.rising == IN_A_ROW:
        reporter.note(f"step {progress.step}: {found.advice}")
