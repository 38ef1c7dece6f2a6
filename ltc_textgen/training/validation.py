"""Validation: the loss on held-out text with carried state, a sample, and the best weights so far."""

import math

import torch

from ltc_textgen import runs
from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import LTCError
from ltc_textgen.evaluation import score_tokens
from ltc_textgen.generation.generate import generate
from ltc_textgen.training.budget import FRACTION
from ltc_textgen.training.report import Validation, clock
from ltc_textgen.training.session import Session, Watch

ROW_TOKENS = 2048
"""Least tokens of a batch row: enough that its start from the initial state, which costs some nats, does not show."""

ROWS = 32

PROBE_TOKENS = 128

LONGEST = FRACTION / 2
"""Part of a run by time that one validation may take: one halfway and one at the end. Of a text that takes longer only
the beginning is scored."""


def validate(session: Session, watch: Watch) -> None:
    """Score the validation text, keep the weights if they are the best, and report. Must be called by all processes.

    The main process does the work; nothing of it moves the random generators of training. The loss is that of the
    weights in float32, whatever the precision of training, since that is how they are used afterwards.
    """
    progress, train_loss = session.progress, session.progress.recent_loss
    result = None
    if session.runtime.is_main:
        with torch.random.fork_rng(devices=_cuda(session.runtime.device)):
            valid = session.data.valid[: progress.valid_tokens]
            session.reporter.validating(progress.step, len(valid))
            nll, tokens = score_tokens(session.model, valid, rows=rows_for(len(valid)))
            result = (nll / tokens, _sample(session))
    _, val_loss = watch.lap(session, result[0] if result else 0.0)
    best = math.isfinite(val_loss) and (progress.best_loss is None or val_loss < progress.best_loss)
    progress.validated_step, progress.val_loss, progress.train_loss = progress.step, val_loss, train_loss
    if not math.isfinite(val_loss):
        progress.val_loss = None
        session.reporter.note(f"step {progress.step}: the validation loss is not finite; these weights are not kept")
    progress.gained = progress.best_loss - val_loss if best and progress.best_loss is not None else None
    if best:
        progress.best_loss, progress.best_step = val_loss, progress.step
        if session.runtime.is_main:
            keep_weights(session)
    if result:
        _report(session, Validation(progress.step, val_loss, train_loss, best, progress.seconds, result[1]))


def probe(session: Session, watch: Watch) -> None:
    """Estimate what a validation takes, by scoring the beginning of the text. Must be called by all processes.

    A budget that is too short for the whole text gets as much of it as fits.
    """
    valid, progress, budget = session.data.valid, session.progress, session.budget.seconds
    part = valid[: ROWS * PROBE_TOKENS + 1]
    for text in (part[: ROWS + 1], part):  # the first call of anything is slow
        watch.lap(session)
        if session.runtime.is_main:
            score_tokens(session.model, text, rows=rows_for(len(valid)))
    seconds, _ = watch.lap(session)
    progress.validation_seconds = whole = seconds * len(valid) / len(part)
    if budget is None or whole <= LONGEST * budget or len(part) == len(valid):
        return
    progress.valid_tokens = max(len(part), int(len(valid) * LONGEST * budget / whole))
    progress.validation_seconds = whole * progress.valid_tokens / len(valid)
    session.reporter.note(
        f"validating on all {len(valid):,} tokens would take about {clock(whole)} of the {clock(budget)}: it is made "
        f"on the first {progress.valid_tokens:,}; with more time or a shorter text (--valid, --valid-fraction), on all"
    )


def keep_weights(session: Session) -> None:
    """Save the current weights in the run directory, where generation and evaluation load them."""
    fingerprints = {"tokenizer": session.data.tokenizer.fingerprint}
    runs.save_weights(session.out / runs.WEIGHTS, session.model, fingerprints)


def rows_for(tokens: int) -> int:
    """Batch rows in which a text of so many tokens is scored."""
    return max(1, min(ROWS, tokens // ROW_TOKENS))


def _sample(session: Session) -> str | None:
    config = session.run.train
    if not config.sample_tokens:
        return None
    sampling = SamplingConfig(max_tokens=config.sample_tokens, seed=config.seed)
    try:
        (written,) = generate(
            session.model, session.data.tokenizer, config.sample_prompt, sampling, notify=session.reporter.note
        )
    except LTCError as error:
        session.reporter.note(f"no sample: {error}")
        return None
    return config.sample_prompt + written.text


def _report(session: Session, result: Validation) -> None:
    session.record(
        {
            "step": result.step,
            "val_loss": result.val_loss,
            "train_loss": result.train_loss,
            "gap": result.gap,
            "best": result.best,
            "learning_rate": session.progress.learning_rate,
            "tokens_per_second": session.progress.tokens_per_second,
            "seconds": result.seconds,
            "sample": result.sample,
        }
    )
    session.reporter.validation(result)


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
