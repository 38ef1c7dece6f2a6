"""What a resumed run must have in common with the run it goes on with, and what it means to go on without it."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ltc_textgen.config import ModelConfig, TrainConfig
from ltc_textgen.data.token_cache import TokenData
from ltc_textgen.errors import UsageError
from ltc_textgen.io.hashing import fingerprint

LANES_START_AFRESH = frozenset({"tokenizer", "corpus", "model", "batch_size", "sequence_length"})
"""Differences after which the states of the lanes belong to other text, or to another network."""

LOSSES_DIFFER = frozenset({"tokenizer", "corpus", "model"})
"""Differences after which a validation loss cannot be compared with those before."""

FREE = frozenset({"device", "threads", "track"})
"""Training settings that may differ between the processes of a run."""

_MEANING = {
    "tokenizer": "ids may stand for other text, so the network has to learn anew what they mean",
    "corpus": "the run goes on in another text, at the window of its step, and finds its best weights anew",
    "model": "the network computes otherwise with the same weights, and finds its best ones anew",
    "batch_size": "the text is cut into other lanes, which start from rest; epochs have another number of steps",
    "sequence_length": "the text is cut into other windows; lanes start from rest; epochs have another number of steps",
    "processes": "the lanes are shared out anew with their states; sums round and dropout draws otherwise, so the run "
    "is as good as the uninterrupted one, but not the same to the bit",
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
        """What going on all the same comes to."""
        return _MEANING[self.key]


def identity(settings: ModelConfig, train: TrainConfig, data: TokenData, processes: int) -> dict[str, Any]:
    """What a checkpoint remembers of the run that it belongs to; JSON values."""
    return {
        "tokenizer": data.tokenizer.fingerprint,
        "corpus": data.corpus.fingerprint,
        "model": settings.model_dump(mode="json", exclude_defaults=True),
        "batch_size": train.batch_size,
        "sequence_length": train.sequence_length,
        "processes": processes,
    }


def for_manifest(settings: ModelConfig, data: TokenData) -> dict[str, Any]:
    """Hashes of what a checkpoint belongs to, and the versions that wrote it."""
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


def refuse_disagreement(settings: list[dict[str, Any]]) -> None:
    """Make sure that all processes train the same run.

    Args:
        settings: Training settings and identity of each process, in order of rank.

    Raises:
        UsageError: Naming the process and what it sees otherwise than the first.
    """
    for rank, mine in enumerate(settings):
        for key in sorted(mine):
            if key not in FREE and mine[key] != settings[0][key]:
                seen = "" if key in ("tokenizer", "corpus") else f" ({mine[key]}, not {settings[0][key]})"
                raise UsageError(
                    f"process {rank} sees another {key} than process 0{seen}: give the same command on every machine "
                    "and, where they share no disk, copy the text and the run's training.json to each"
                )


def _change(name: str, before: Any, now: Any) -> str:
    return f"{name} is {now}, the checkpoint's is {before}"


def _all_settings(given: Any) -> dict[str, Any]:
    """Model settings, of which those at their defaults may be left out, with the defaults."""
    try:
        return ModelConfig.parse(given).model_dump(mode="json")
    except (UsageError, TypeError):  # of another version
        return dict(given) if isinstance(given, dict) else {}
