"""A learning rate that is too high: noticed by the loss, halved once, and the end of the run the second time.

A run has *diverged* when its recent training loss

* has given up a third of what it had learned: it is above low + (ln V - low) / 3, where low is the lowest that the
  recent loss has been and ln V what guessing costs; or
* is above ln V although the warm-up and `LEARNS` steps are over: it never learned anything.

The recent loss is the mean over about a hundred steps, so neither a spike nor a difficult passage is a divergence. At
the first one the learning rate is halved for the rest of the run; the weights stay as they are, since a recurrent
network mostly finds back by itself. At the second one the run ends. All of it is in `Progress`, so a resumed run does
the same. A run that goes on with another learning rate begins anew.
"""

import math

from ltc_textgen.errors import LTCError
from ltc_textgen.training.progress import Progress
from ltc_textgen.training.session import Session

SETTLED = 18.0
"""Weight of the recent loss (that of 20 steps) from which on it is a mean worth the name."""

LEARNS = 300
"""Steps that a run may take until it is better than guessing."""

SHARE = 1 / 3
"""Share of what was learned that may be lost."""


class DivergedError(LTCError):
    """Training lost what it had learned, with the halved learning rate too. Exit code 1."""


def rate_scale(progress: Progress, learning_rate: float) -> float:
    """What the learning rate is multiplied by: 0.5 after a divergence with this peak, else 1."""
    return 0.5 if progress.halved_from == learning_rate else 1.0


def check(session: Session) -> None:
    """Look at the loss after a step. All processes come to the same, since all know the same losses.

    Raises:
        DivergedError: At the second divergence.
    """
    config, progress = session.run.train, session.progress
    warm = session.budget.done(progress) > config.warmup
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
        What to tell the user at the first divergence; None while all is well.

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
    """The loss that the recent one is above; None while all is well. Remembers the lowest."""
    recent = progress.recent_loss
    if recent is None or progress.recent_weight < SETTLED:
        return None
    low = progress.lowest_loss
    if low is None or recent < low:
        progress.lowest_loss = low = recent
    if low < guessing:
        limit = low + SHARE * (guessing - low)
        return limit if recent > limit else None
    return guessing if late and recent > guessing else None
