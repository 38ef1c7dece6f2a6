"""Training, from settings to a run directory.

    while the budget lasts:   validate if it is time -> save if it is time -> next window -> step

A checkpoint is only written between two steps, at the top of this loop, so a resumed run enters the loop where the
interrupted one left it, and continues with the same bits.
"""

import math
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltc_textgen import runs
from ltc_textgen.config import RunConfig
from ltc_textgen.data.token_cache import TokenData, prepare
from ltc_textgen.training import checkpoint, monitor, signals
from ltc_textgen.training.distributed import Runtime, explaining
from ltc_textgen.training.metrics import check_trackers, log_interval
from ltc_textgen.training.outlook import Outlook
from ltc_textgen.training.report import Pace, Reporter, SurvivingReporter, make_reporter
from ltc_textgen.training.resume import identity, require_agreement
from ltc_textgen.training.run_lock import lock_run, reject_other_run
from ltc_textgen.training.session import Session, Watch, build, restore, save
from ltc_textgen.training.step import train_step
from ltc_textgen.training.threads import ThreadChoice
from ltc_textgen.training.validation import keep_weights, probe, validate

UNSAVED_MINUTES = 10.0
"""A checkpoint is made at least this often, unless `save_steps` or `save_minutes` says otherwise."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        out: Run directory.
        step: Optimizer steps done, over all resumptions.
        best_val_loss: Lowest validation loss, nats per token; that of the weights in the run directory. None if the
            run was stopped before its first validation.
        best_step: Step of those weights.
        val_loss: Validation loss of the last weights.
        train_loss: Recent training loss at the last validation; a growing distance to `val_loss` is overfitting.
        seconds: Time of training, validations included, over all resumptions.
        tokens: Training tokens read.
        tokens_per_second: Training speed, validations left out.
        valid_tokens: Tokens that a validation scores: all of the held-out text but the first, unless the run is too
            short for that.
        skipped: Steps left out because a number was not finite.
        still_falling: Whether the last validation was clearly better than all before.
        stopped_by: Name of the signal that stopped the run; None if it ran to its end.
    """

    out: Path
    step: int
    best_val_loss: float | None
    best_step: int | None
    val_loss: float | None
    train_loss: float | None
    seconds: float
    tokens: int
    tokens_per_second: float
    valid_tokens: int
    skipped: int
    still_falling: bool
    stopped_by: str | None

    @property
    def exit_code(self) -> int:
        """0; 1 if the last loss is not finite; after a stop by signal 130 (SIGINT), 143 (SIGTERM) or 129 (SIGHUP)."""
        return signals.exit_code(self.stopped_by) if self.stopped_by else int(self.not_finite)

    @property
    def not_finite(self) -> bool:
        """Whether the run came to its end with a validation loss that is no finite number."""
        return self.stopped_by is None and self.val_loss is None

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of JSON values."""
        return asdict(self) | {"out": str(self.out)}


def train(
    run: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    anyway: bool = False,
    reporter: Reporter | None = None,
    data: TokenData | None = None,
) -> TrainResult:
    """Train a model and leave a run directory behind (see `runs`).

    Python's, numpy's and torch's global random generators are seeded.

    Args:
        run: All settings.
        out: Run directory; made if need be.
        resume: Continue from the newest checkpoint in `out`; a run that has none yet starts from the beginning. The
            result is that of an uninterrupted run, to the last bit with the same number of threads.
        anyway: Whether to resume even with another corpus, tokenizer, batch or number of processes than the
            checkpoint's; the consequences are reported.
        reporter: Reports the run; by default a bar on a terminal, lines elsewhere.
        data: The corpus that `run.data` names, if the caller has prepared it.

    Raises:
        UsageError: If settings contradict each other, `out` holds another run or model, has lost its
            checkpoints, or they are of another run.
        DataError: If the corpus or the tokenizer cannot be loaded.
        ArtifactError: If no checkpoint in `out` is undamaged.
        DirectoryLockedError: If another process trains into `out`.
        DivergedError: If the loss rose again after the learning rate was halved.
        NonFiniteError: If too many steps in a row gave numbers that are not finite.
        LTCError: If the disk cannot be written, or another process of the run is lost.
    """
    check_trackers(run.train.report_to)
    with explaining(), ExitStack() as stack:
        runtime = Runtime(run.train, str(out / "tracking"), unused_parameters=run.model.get("head") == "adaptive")
        stack.enter_context(lock_run(out) if runtime.is_main else nullcontext())
        if runtime.is_main:
            checkpoint.remove_leftovers(out)
        runtime.wait()
        reporter = (reporter or SurvivingReporter(make_reporter())) if runtime.is_main else Reporter()
        stack.callback(reporter.close)
        reject_other_run(out, resume)
        if data is None:
            with runtime.main_first():
                data = data or prepare(run.data, reporter.note, progress=reporter.tokenizing)
        _require_agreement(run, data, runtime)
        session = build(run, out, data, runtime, reporter)
        ended = _begin(session, resume, anyway)
        with signals.StopRequest(
            lambda name: reporter.note(f"{name}: stopping after this step; again to stop at once")
        ) as stop:
            stopped_by = run_loop(session, Watch(stop, session.progress.seconds))
        return _end(session, stopped_by, ended)


def run_loop(session: Session, watch: Watch) -> str | None:
    """Step until the budget is used up or a signal arrives, then save.

    Returns:
        Name of the signal that ended it, None if it ran to its end.
    """
    progress, budget = session.progress, session.budget
    stopped_by, saved_at = None, progress.seconds
    threads = ThreadChoice.of(session)
    if not budget.is_over(progress):
        _look_ahead(session, watch, threads)
    while True:
        stopped_by = stopped_by or watch.signal_received(session)
        if stopped_by or budget.is_over(progress):
            break
        if budget.validation_is_due(progress):
            _timed_validation(session, watch)
        elif _save_is_due(session, saved_at):
            save(session)
            watch.lap(session)
            saved_at = progress.seconds
        else:
            stopped_by = train_step(session, watch)
            monitor.check(session)
            if threads.free and progress.step % log_interval(progress.step) == 0:
                threads.watch(_speed(session))
                watch.lap(session)
            _report_step(session)
    if not stopped_by and progress.validated_step != progress.step:
        _timed_validation(session, watch)
        session.saved_step = -1  # the checkpoint of a run resumed at its last step lacks this validation
    if stopped_by and progress.best_step is None and session.runtime.is_main:
        keep_weights(session)  # so that the interrupted run can generate text
    if session.saved_step != progress.step:
        save(session)
    return stopped_by


def _require_agreement(run: RunConfig, data: TokenData, runtime: Runtime) -> None:
    settings = run.model_config_for(data.tokenizer.vocab_size)
    mine = run.train.model_dump(mode="json") | identity(settings, run.train, data, runtime.world)
    require_agreement(runtime.gather_objects(mine))


def _begin(session: Session, resume: bool, anyway: bool) -> bool:
    """Resume or start the run; the directory then holds all but the weights. Returns whether it had ended."""
    resumed = resume and restore(session, anyway)
    over = resumed and session.budget.is_over(session.progress)
    ended = over and session.progress.validated_step == session.progress.step
    if session.runtime.is_main:
        _write_directory(session, resumed, ended)
    _report_sizes(session)
    note = session.reporter.note
    if resumed:
        note(f"resumed at step {session.progress.step}, after {session.progress.seconds:.1f} s")
        if over and not ended:
            note("no steps are left with these settings: raise --epochs, --max-steps or --time-budget to continue")
    elif resume:
        note(f"{session.out}: a new run, since there is no checkpoint to resume from")
    session.runtime.wait()
    steps = {"step": session.progress.step, "total_steps": session.budget.steps}
    session.reporter.start(_facts(session) | steps | {"out": str(session.out)})
    return ended


def _write_directory(session: Session, resumed: bool, ended: bool) -> None:
    """Everything in the run directory but the weights; that of a run that had ended stays as it is."""
    if not resumed:
        session.metrics.truncate(0)
    if ended:
        return
    runs.save_run(session.out, session.model, session.data.tokenizer, session.run, _facts(session))
    if resumed and session.progress.best_step is None:
        keep_weights(session)  # weights that may be there are of other settings, or of steps that are repeated


def _report_sizes(session: Session) -> None:
    runtime, data, note = session.runtime, session.data, session.reporter.note
    processes = f", {runtime.world} processes" if runtime.world > 1 else ""
    where = f"{runtime.device}, {runtime.threads} threads{processes}; run directory {session.out}"
    note(f"{data.corpus_name}: {len(data.train):,} tokens to train on, {len(data.valid):,} to validate on")
    note(f"{sum(p.numel() for p in session.model.parameters()):,} parameters; {where}")
    if unknown := data.train_unknown + data.valid_unknown:
        tokens = len(data.train) + len(data.valid)
        note(f"{unknown:,} of the {tokens:,} tokens are unknown to the tokenizer ({unknown / tokens:.2%})")


def _timed_validation(session: Session, watch: Watch) -> None:
    """Validate, and record the time that it took: as much is reserved for the last validation."""
    before = session.progress.seconds
    validate(session, watch)
    monitor.watch(session.progress, session.reporter, session.data.comparison.unlike)
    watch.lap(session)
    session.progress.validation_seconds = session.progress.seconds - before
    session.progress.validated_at = session.progress.seconds


def _save_is_due(session: Session, saved_at: float) -> bool:
    progress, train = session.progress, session.run.train
    if progress.step == 0 or session.saved_step == progress.step:
        return False
    if progress.validated_step == progress.step and (train.save_steps is None or train.keep_best):
        return True
    if train.save_steps is not None and progress.step % train.save_steps == 0:
        return True
    minutes = train.save_minutes or (UNSAVED_MINUTES if train.save_steps is None else math.inf)
    return progress.seconds - saved_at >= 60 * minutes


def _look_ahead(session: Session, watch: Watch, threads: ThreadChoice) -> None:
    """Measure what the plan of the run depends on, and report what the run will read."""
    progress, budget = session.progress, session.budget
    if budget.seconds is not None and progress.validation_seconds is None:
        probe(session, watch)
    if session.runtime.world == 1 and (budget.seconds is not None or threads.free):
        threads.measure(choose=progress.step == 0)
        watch.lap(session)
    if session.runtime.is_main and progress.step == 0 and (budget.steps is not None or threads.step_seconds):
        measured = threads.step_seconds, progress.validation_seconds
        for line in Outlook.of(session.data, budget, session.batches.steps_per_epoch, *measured).lines():
            session.reporter.note(line)


def _speed(session: Session) -> float:
    """Training tokens per second since the last line of metrics."""
    progress, train = session.progress, session.run.train
    tokens = train.batch_size * train.sequence_length * progress.window_steps
    return tokens / max(progress.window_seconds, 1e-9)


def _report_step(session: Session) -> None:
    """Report a step, and at intervals write a line of metrics."""
    progress, budget = session.progress, session.budget
    loss = progress.window_loss / progress.window_steps if progress.window_steps else None
    speed = _speed(session)
    session.reporter.step(
        Pace(
            step=progress.step,
            total_steps=budget.steps,
            done=budget.done(progress),
            loss=loss,
            learning_rate=progress.learning_rate,
            tokens_per_second=speed,
            seconds=progress.seconds,
            remaining=budget.remaining(progress),
        )
    )
    if progress.step % log_interval(progress.step) == 0:
        progress.window_loss, progress.window_steps, progress.window_seconds = 0.0, 0, 0.0
        if session.runtime.is_main:
            values = {"step": progress.step, "loss": loss, "learning_rate": progress.learning_rate}
            values |= {"tokens_per_second": speed, "seconds": progress.seconds, "skipped": progress.skipped}
            session.record(values)


def _end(session: Session, stopped_by: str | None, ended: bool) -> TrainResult:
    progress = session.progress
    result = TrainResult(
        out=session.out,
        step=progress.step,
        best_val_loss=progress.best_loss,
        best_step=progress.best_step,
        val_loss=progress.val_loss,
        train_loss=progress.train_loss,
        seconds=progress.seconds,
        tokens=progress.tokens,
        tokens_per_second=progress.tokens_per_second,
        valid_tokens=(progress.valid_tokens or len(session.data.valid)) - 1,
        skipped=progress.skipped,
        still_falling=progress.still_falling,
        stopped_by=stopped_by,
    )
    if session.runtime.is_main:
        if not ended:
            runs.save_facts(session.out, session.run, _facts(session) | {"result": result.to_dict()})
        elif not stopped_by:
            session.reporter.note(f"the run had ended at step {progress.step}: nothing to do")
        session.trackers.close()
        session.reporter.end(result.to_dict())
    session.runtime.restore_forward(session.module)
    session.runtime.wait()
    return result


def _facts(session: Session) -> dict[str, Any]:
    data: TokenData = session.data
    return {
        "corpus": data.corpus_name,
        "corpus_fingerprint": data.corpus.fingerprint,
        "tokenizer": data.tokenizer.kind,
        "documents": data.documents,
        "train_tokens": len(data.train),
        "valid_tokens": len(data.valid),
        "train_unknown": data.train_unknown,
        "valid_unknown": data.valid_unknown,
        "valid_words": data.valid_words,
        "valid_bytes": data.valid_bytes,
        "parameters": sum(p.numel() for p in session.model.parameters()),
    }
