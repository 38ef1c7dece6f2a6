"""The objects of a running training, built from its settings, and how they are saved and restored.

The seconds of the main process and a signal that any process received are shared, so that all processes stop together.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ltc_textgen import runs
from ltc_textgen.config import RunConfig
from ltc_textgen.data.batches import Batches, release_pages
from ltc_textgen.data.token_cache import TokenData
from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.io.atomic import sync
from ltc_textgen.model.size import require_memory
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Int, Tensor
from ltc_textgen.training import checkpoint
from ltc_textgen.training.budget import Budget
from ltc_textgen.training.checkpoint import Checkpoint
from ltc_textgen.training.distributed import Runtime
from ltc_textgen.training.metrics import METRICS, MetricsLog, Trackers
from ltc_textgen.training.optimizer import make_optimizer
from ltc_textgen.training.progress import Progress
from ltc_textgen.training.report import Reporter
from ltc_textgen.training.resume import (
    LOSSES_DIFFER,
    STATES_RESET,
    agreed_checkpoint,
    differences,
    for_manifest,
    identity,
)
from ltc_textgen.training.signals import SIGNALS, StopRequest
from ltc_textgen.training.warm_start import copy_weights

COUNTED_AT_ONCE = 1 << 22

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer


@dataclass
class Session:
    """A run under way.

    Args:
        run: Its settings.
        out: Its directory.
        data: Corpus as tokens, and the tokenizer.
        runtime: Device and processes.
        model: The network itself.
        module: The network as `accelerate` prepared it; its forward is the one to call in training.
        adam: The optimizer itself.
        optimizer: The optimizer as `accelerate` prepared it.
        batches: Windows of the training text, of this process.
        budget: When it validates and ends.
        reporter: Reports it.
        metrics: metrics.jsonl.
        trackers: Further ones.
        progress: Steps, seconds and losses so far.
        state: State of this process's batch rows after the last step; None where all of them are reset.
        saved_step: Step of the last checkpoint, -1 if there is none.
    """

    run: RunConfig
    out: Path
    data: TokenData
    runtime: Runtime
    model: LiquidTimeConstantNetwork
    module: nn.Module
    adam: torch.optim.Optimizer
    optimizer: "AcceleratedOptimizer"
    batches: Batches
    budget: Budget
    reporter: Reporter
    metrics: MetricsLog
    trackers: Trackers
    progress: Progress = field(default_factory=Progress)
    state: LiquidState | None = None
    saved_step: int = -1

    @property
    def rows(self) -> int:
        """Batch rows of this process."""
        return self.run.train.batch_size // self.runtime.world

    def record(self, values: dict[str, Any]) -> None:
        """Write a line of metrics (main process)."""
        self.metrics.append(values)
        self.trackers.log(values)


def build(run: RunConfig, out: Path, data: TokenData, runtime: Runtime, reporter: Reporter) -> Session:
    """A run at its beginning."""
    config = run.train
    checkpoint.seed_everything(config.seed)
    settings = run.model_config_for(data.tokenizer.vocab_size)
    require_memory(settings)
    model = LiquidTimeConstantNetwork.from_settings(settings)
    if config.init is not None and not checkpoint.list_checkpoints(out):  # a resumed run has weights of its own
        known = copy_weights(model, data.tokenizer, Path(config.init))
        reporter.note(f"begins from {config.init}, which knows {known:,} of {data.tokenizer.vocab_size:,} tokens")
    if rank_by := getattr(model.lm_head, "rank_by", None):
        rank_by(count_tokens(data.train, model.settings.vocabulary))
    if runtime.rank:
        checkpoint.seed_everything(config.seed + runtime.rank)  # each process drops out other units
    adam = make_optimizer(model, config)
    module, optimizer = runtime.prepare(model, adam)
    batches = Batches(data.train, config.batch_size, config.sequence_length, runtime.rank, runtime.world)
    return Session(
        run=run,
        out=out,
        data=data,
        runtime=runtime,
        model=model,
        module=module.train(),
        adam=adam,
        optimizer=optimizer,
        batches=batches,
        budget=Budget.plan(config, batches.steps_per_epoch, len(data.valid)),
        reporter=reporter,
        metrics=MetricsLog(out / METRICS),
        trackers=Trackers(runtime.accelerator, out.name, _all_settings(run, model), reporter.note),
    )


def _all_settings(run: RunConfig, model: LiquidTimeConstantNetwork) -> dict[str, dict[str, Any]]:
    return run.model_dump(mode="json") | {"model": model.settings.model_dump(mode="json")}


def count_tokens(tokens: np.ndarray, vocabulary: int) -> Int[Tensor, " V"]:
    """How often each id occurs, in bounded memory however long the text is."""
    counts = np.zeros(vocabulary, dtype=np.int64)
    for start in range(0, len(tokens), COUNTED_AT_ONCE):
        counts += np.bincount(tokens[start : start + COUNTED_AT_ONCE], minlength=vocabulary)
        release_pages(tokens)
    return torch.from_numpy(counts)


def own_identity(session: Session) -> dict[str, Any]:
    """What a resumed run must have in common with its checkpoint."""
    return identity(session.model.settings, session.run.train, session.data, session.runtime.world)


def save(session: Session) -> None:
    """Write a checkpoint. Must be called by all processes."""
    # Where every row is reset there is no state to keep: a learned initial state is part of the weights.
    states = {} if session.state is None else session.state.tensors()
    rows = {name: session.runtime.gather_rows(tensor) for name, tensor in states.items()}
    generators = session.runtime.gather_objects(
        (checkpoint.random_states(), checkpoint.torch_random_states(session.runtime.device))
    )
    session.saved_step = session.progress.step
    if not session.runtime.is_main:
        return
    session.progress.metrics_bytes = session.metrics.sync()
    scaler = session.runtime.accelerator.scaler
    record = {
        "identity": own_identity(session),
        "train": session.run.train.model_dump(mode="json"),
        "threads": session.runtime.threads,
        "progress": session.progress.to_dict(),
        "random": [python for python, _ in generators],
        "scaler": scaler.state_dict() if scaler else None,
    }
    tensors = {
        "model": checkpoint.model_tensors(session.model),
        "optimizer": checkpoint.optimizer_tensors(session.adam),
        "state": rows,
        "random": {f"{rank}.{name}": t for rank, (_, torch_) in enumerate(generators) for name, t in torch_.items()},
    }
    weights = session.out / runs.WEIGHTS
    checkpoint.write_checkpoint(
        session.out,
        session.progress.step,
        tensors,
        record,
        best=weights if session.progress.best_step is not None else None,
        about=for_manifest(session.model.settings, session.data) | {"val_loss": _own_loss(session.progress)},
        keep=session.run.train.save_total_limit,
        keep_best=session.run.train.keep_best,
    )
    session.reporter.checkpoint(session.progress.step, session.progress.seconds)


def restore(session: Session, anyway: bool = False) -> bool:
    """Resume from the newest usable checkpoint; False if there is none. Must be called by all processes.

    Args:
        session: A run at its beginning.
        anyway: Whether to resume with another corpus, tokenizer, batch or number of processes, and with other settings
            of the model that its weights fit; what differs is reported.

    Raises:
        UsageError: If the checkpoint is of another run in one of these ways and `anyway` is not given.
        ArtifactError: If there are checkpoints, but none that is undamaged.
    """
    found = agreed_checkpoint(session.out, session.runtime, session.reporter.note)
    if found is None:
        return False
    changed = _changes(session, found.progress["identity"], anyway)
    _report_changes(session, found.progress)
    _restore_weights(session, found, changed)
    _restore_state(session, found, changed)
    _restore_progress(session, found, changed)
    _restore_random(session, found)
    return True


def _restore_weights(session: Session, found: Checkpoint, changed: set[str]) -> None:
    try:
        checkpoint.load_model_tensors(session.model, found.tensors["model"])
    except ArtifactError as error:
        if "model" not in changed:
            raise
        raise UsageError(f"{session.out}: cannot resume, not even with --resume-anyway: {error}") from None
    checkpoint.load_optimizer_tensors(session.adam, found.tensors["optimizer"])
    scaler, scale = session.runtime.accelerator.scaler, found.progress["scaler"]
    if scaler and scale:
        scaler.load_state_dict(scale)


def _restore_state(session: Session, found: Checkpoint, changed: set[str]) -> None:
    """The state of this process's batch rows, if it is a state of the text that they read."""
    if found.tensors["state"] and not changed & STATES_RESET:
        expected = session.model.initial_state(session.run.train.batch_size)
        states = checkpoint.batch_row_states(found.tensors["state"], expected)
        first = session.runtime.rank * session.rows
        session.state = states.map(lambda rows: rows[first : first + session.rows].clone()).to(session.runtime.device)


def _restore_progress(session: Session, found: Checkpoint, changed: set[str]) -> None:
    """Progress of the checkpoint; undoes metrics and best weights of steps that will be repeated."""
    session.progress = Progress.from_dict(found.progress["progress"])
    if changed & LOSSES_DIFFER:
        session.progress.forget_validations()
    session.saved_step = session.progress.step
    if session.runtime.is_main:
        session.metrics.truncate(session.progress.metrics_bytes)
        if session.progress.best_step is not None:
            _restore_best(found.path / checkpoint.BEST, session.out / runs.WEIGHTS)


def _restore_random(session: Session, found: Checkpoint) -> None:
    """The random generators of this process; one that the checkpoint does not know keeps those it has."""
    rank, states = session.runtime.rank, found.progress["random"]
    if rank >= len(states):
        return
    checkpoint.load_random_states(states[rank])
    prefix = f"{rank}."
    own = {n.removeprefix(prefix): t for n, t in found.tensors["random"].items() if n.startswith(prefix)}
    checkpoint.load_torch_random_states(own, session.runtime.device)


def _restore_best(source: Path, target: Path) -> None:
    """Put back the best weights of the checkpoint, in place of better ones of steps that will be repeated."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    checkpoint.link_or_copy(source, temporary)
    temporary.replace(target)
    sync(target.parent)


def _own_loss(progress: Progress) -> float | None:
    """The validation loss of the weights as they are now, if they were validated."""
    return progress.val_loss if progress.validated_step == progress.step else None


def _changes(session: Session, before: dict[str, Any], anyway: bool) -> set[str]:
    """Keys of the identity in which this run is not the one of the checkpoint."""
    found = differences(before, own_identity(session))
    if found and not anyway:
        raise UsageError(
            f"{session.out}: cannot resume: {'; '.join(each.text for each in found)}; give the settings of the first "
            "run, start another one with another --out, or resume nevertheless with --resume-anyway"
        )
    for each in found:
        session.reporter.note(f"resumed although {each.text}: {each.meaning}")
    return {each.key for each in found}


def _report_changes(session: Session, record: dict[str, Any]) -> None:
    then, now = record["train"], session.run.train.model_dump(mode="json")
    changed = [f"{key} {then.get(key)} -> {value}" for key, value in now.items() if then.get(key) != value]
    if then.get("optimizer", "adamw") != now["optimizer"]:
        changed.append("moments that the optimizer before did not have start from zero")
    if session.runtime.chooses_threads and record["threads"] <= session.runtime.usable_threads:
        session.runtime.use_threads(record["threads"])  # the same sums, and so the same bits
    if record["threads"] != session.runtime.threads:
        changed.append(f"CPU threads {record['threads']} -> {session.runtime.threads} (sums round differently)")
    if changed:
        session.reporter.note(f"resumed with other settings: {', '.join(changed)}")


class Watch:
    """Counts the seconds of a run, interruptions left out, and keeps `Progress.seconds` equal in all processes.

    Args:
        stop: Catches the signals of this process.
        seconds: What the run has used before, from its checkpoint.
        clock: A monotonic clock in seconds: neither a changed date nor summer time moves it.
    """

    def __init__(self, stop: StopRequest, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop, self._clock = stop, clock
        self._zero = clock() - seconds

    def share(self, session: Session, finite: bool, loss: float) -> tuple[bool, float, str | None]:
        """Agree about a step, in one collective; advances `progress.seconds` and `stepping_seconds`.

        Args:
            session: The run.
            finite: Whether this process's loss and gradient are.
            loss: This process's mean loss, over as many tokens as every other's.

        Returns:
            Whether the step is broken in any process, the mean loss over all, and the name of a signal received.
        """
        runtime, progress = session.runtime, session.progress
        received = [float(self._stop.number == number) for number in SIGNALS]
        mine = [float(not finite), loss / runtime.world if finite else 0.0, *received, self._main_seconds(session)]
        broken, mean, *counts, seconds = runtime.sum(mine)
        progress.stepping_seconds += seconds - progress.seconds if progress.step else 0.0
        progress.window_seconds += seconds - progress.seconds
        progress.seconds = seconds
        names = [number.name for number, count in zip(SIGNALS, counts, strict=True) if count]
        return broken > 0, mean, names[0] if names else None

    def lap(self, session: Session, value: float = 0.0) -> tuple[float, float]:
        """Advance `progress.seconds` by what was no step, and broadcast a number of the main process.

        Returns:
            Seconds since the last call, and the main process's `value`.
        """
        before = session.progress.seconds
        mine = [self._main_seconds(session), value if session.runtime.is_main else 0.0]
        session.progress.seconds, shared = session.runtime.sum(mine, patiently=True)
        return session.progress.seconds - before, shared

    def signal_received(self, session: Session) -> str | None:
        """Name of a signal that this process received. Several processes act only on one that `share` has broadcast."""
        return self._stop.name if session.runtime.world == 1 else None

    def _main_seconds(self, session: Session) -> float:
        return self._clock() - self._zero if session.runtime.is_main else 0.0
