"""What a resumed run must have in common with the run before, and which checkpoint all processes resume from.

Settings that change what a step computes must be equal, unless the user accepts the difference. The processes of a run
agree on one checkpoint, whether their machines share a disk or not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ltc_textgen.config import ModelConfig, TrainConfig
from ltc_textgen.data.token_cache import TokenData
from ltc_textgen.errors import ArtifactError, LTCError, UsageError
from ltc_textgen.io.checked import sha256_file
from ltc_textgen.io.hashing import fingerprint
from ltc_textgen.settings import with_current_names
from ltc_textgen.training.checkpoint import CHECKPOINTS, MANIFEST, Checkpoint, newest_checkpoint, read_checkpoint
from ltc_textgen.training.distributed import Runtime
from ltc_textgen.training.record import check_record

STATES_RESET = frozenset({"tokenizer", "corpus", "model", "batch_size", "sequence_length"})
"""Differences after which the states of the batch rows are those of other text, or of another network."""

LOSSES_DIFFER = frozenset({"tokenizer", "corpus", "model"})
"""Differences after which a validation loss cannot be compared with those before."""

FREE = frozenset({"device", "threads", "report_to"})
"""Training settings that may differ between the processes of a run."""

_MEANING = {
    "tokenizer": "ids may stand for other text, so the network has to relearn their meaning",
    "corpus": "training continues on another text, at the window of its step; the best weights so far are dropped",
    "model": "the network computes differently with the same weights; the best ones so far are dropped",
    "batch_size": "the text is cut into other batch rows, whose states are reset; epochs have another number of steps",
    "sequence_length": "the text is cut into other windows; states are reset; epochs have another number of steps",
    "processes": "the batch rows are redistributed with their states; sums round and dropout draws differently, so "
    "the run is as good as the uninterrupted one, but not the same to the bit",
}


@dataclass(frozen=True)
class Difference:
    """One thing in which a run and its checkpoint differ.

    Args:
        key: Key of `identity`.
        text: What differs, for the user.
    """

    key: str
    text: str

    @property
    def meaning(self) -> str:
        """The consequence of resuming nevertheless."""
        return _MEANING[self.key]


def identity(settings: ModelConfig, train: TrainConfig, data: TokenData, processes: int) -> dict[str, Any]:
    """What a checkpoint records of its run; JSON values."""
    return {
        "tokenizer": data.tokenizer.fingerprint,
        "corpus": data.corpus.fingerprint,
        "model": settings.model_dump(mode="json", exclude_defaults=True),
        "batch_size": train.batch_size,
        "sequence_length": train.sequence_length,
        "processes": processes,
    }


def for_manifest(settings: ModelConfig, data: TokenData) -> dict[str, Any]:
    """Hashes of the run of a checkpoint, and the versions that wrote it."""
    versions = {name: version(name) for name in ("ltc-textgen", "torch")}
    return {
        "config": fingerprint(settings),
        "tokenizer": data.tokenizer.fingerprint,
        "corpus": data.corpus.fingerprint,
        "versions": versions,
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """In what two identities differ, `then` that of a checkpoint.

    The models are compared with their defaults filled in, so that a setting of a later version is no difference.
    """
    found = []
    for key, value in now.items():
        before = then.get(key)
        if key == "model":
            settings, earlier = _all_settings(value), _all_settings(before)
            changed = sorted(k for k in {*settings, *earlier} if settings.get(k) != earlier.get(k))
            found += [Difference(key, _change(f"model.{k}", earlier.get(k), settings.get(k))) for k in changed]
        elif value != before:
            secret = key in ("tokenizer", "corpus")
            text = f"{key} is not the one that the run was started with" if secret else _change(key, before, value)
            found.append(Difference(key, text))
    return found


def require_agreement(settings: list[dict[str, Any]]) -> None:
    """Reject processes that would train different runs.

    Args:
        settings: Training settings and identity of each process, in order of rank.

    Raises:
        UsageError: Naming the process and the setting that differs from the first's.
    """
    for rank, mine in enumerate(settings):
        for key in sorted(mine):
            if key not in FREE and mine[key] != settings[0][key]:
                seen = "" if key in ("tokenizer", "corpus") else f" ({mine[key]}, not {settings[0][key]})"
                raise UsageError(
                    f"process {rank} has another {key} than process 0{seen}: give the same command on every machine "
                    "and, where they share no disk, copy the text and the run's training.json to each"
                )


def _change(name: str, before: Any, now: Any) -> str:
    return f"{name} is {now}, the checkpoint's is {before}"


def _all_settings(given: Any) -> dict[str, Any]:
    """Model settings, of which those at their defaults may be left out, with the defaults."""
    try:
        return ModelConfig.parse(with_current_names(given, ModelConfig)).model_dump(mode="json")
    except (UsageError, TypeError, AttributeError):  # of another version
        return dict(given) if isinstance(given, dict) else {}


def agreed_checkpoint(run: Path, runtime: Runtime, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest usable checkpoint that the main process finds, in every process. Must be called by all.

    A process that sees the same checkpoint on its disk reads it there; if one does not, the main process sends it.

    Args:
        run: Run directory, which may be absent on machines other than that of the main process.
        runtime: The processes.
        report: Called with a line about each checkpoint that is rejected and skipped.

    Raises:
        ArtifactError: In all processes, if the main one finds checkpoints and every one is damaged, or its record is
            not one of a run.
    """
    found: Checkpoint | None = None
    error: LTCError | None = None
    if runtime.is_main:
        try:
            found = newest_checkpoint(run, report)
            if found is not None:
                check_record(found.progress, found.path)
        except LTCError as failure:
            error = failure
    name, digest = (found.path.name, sha256_file(found.path / MANIFEST)) if found else ("", "")
    name, digest, error = runtime.from_main((name, digest, error))
    if error:
        raise error
    if not name or runtime.world == 1:
        return found
    if not runtime.is_main:
        found = _read_same(run / CHECKPOINTS / name, digest)
    lacking = runtime.sum([float(found is None)])[0]
    return runtime.from_main(found) if lacking else found


def _read_same(path: Path, digest: str) -> Checkpoint | None:
    """The checkpoint at `path`, if it is there, whole, and the one whose manifest has this digest."""
    manifest = path / MANIFEST
    try:
        return read_checkpoint(path) if manifest.is_file() and sha256_file(manifest) == digest else None
    except (ArtifactError, OSError):
        return None
