"""A text that was read, as an object: a prompt is read once, kept, forked, mixed with another, and continued.

    state = model.read(book, tokenizer)
    state.save("book.state")
    model.generate(state=TextState.load("book.state", model))

A `LiquidState` is the numbers alone. Continuing a text also needs its last token, which the network has not read yet:
reading it predicts the next one. `TextState` has both, and the fingerprint of its network.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.io.hashing import digest
from ltc_textgen.io.output import one_line
from ltc_textgen.io.paths import os_reason
from ltc_textgen.io.tensor_names import current_names
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Int, Tensor

FORMAT = "1"
BEFORE = 16
"""Most tokens before the last that a state keeps of each text: no n-gram memory looks further back."""


@runtime_checkable
class Network(Protocol):
    """What loading a state needs to know of a model."""

    settings: Any

    def initial_state(self, batch_size: int) -> LiquidState:
        """The state before the first token."""

    def fingerprint(self) -> str:
        """Checksum of settings and weights."""


@dataclass(frozen=True)
class TextState:
    """What a model remembers of texts that it has read. Its size does not depend on how long they were.

    Args:
        liquid: State before the last token of each text.
        last: The last token of each text.
        tokens: Tokens of each text.
        model: Fingerprint of the model that read them.
        before: Of each text some tokens before its last, the newest last, for an n-gram memory; none if not known.
    """

    liquid: LiquidState
    last: Int[Tensor, " B"]
    tokens: tuple[int, ...]
    model: str
    before: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.before:
            object.__setattr__(self, "before", ((),) * len(self.tokens))

    @property
    def batch_size(self) -> int:
        """B, the number of texts."""
        return len(self.tokens)

    def require_model(self, model: Network) -> None:
        """Reject another model, or this one with other weights.

        Raises:
            UsageError: If it is another.
        """
        if model.fingerprint() != self.model:
            raise UsageError("state: another model has read this text, or this one has learned since: read it again")

    def select(self, rows: list[int]) -> "TextState":
        """Texts by number, in that order; repeats fork a state."""
        index = torch.tensor(rows, dtype=torch.int64)
        last = self.last.index_select(0, index.to(self.last.device))
        tokens, before = tuple(self.tokens[row] for row in rows), tuple(self.before[row] for row in rows)
        return TextState(self.liquid.select(index), last, tokens, self.model, before)

    @classmethod
    def stack(cls, states: list["TextState"]) -> "TextState":
        """Several states of one model as one batch.

        Raises:
            UsageError: If there is none, or they are of different models.
        """
        if not states:
            raise UsageError("state: there is nothing to stack")
        _require_same_model(*states)
        every = [state.liquid for state in states]
        liquid = LiquidState(
            tuple(torch.cat(parts) for parts in zip(*(state.neurons for state in every), strict=True)),
            tuple(torch.cat(parts) for parts in zip(*(state.conv_state for state in every), strict=True)),
        )
        tokens = tuple(count for state in states for count in state.tokens)
        before = tuple(row for state in states for row in state.before)
        return cls(liquid, torch.cat([state.last for state in states]), tokens, states[0].model, before)

    def save(self, path: Path | str) -> None:
        """Write the state to a safetensors file, whole or not at all.

        Raises:
            LTCError: If there is no space or no permission.
        """
        write_atomic(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self.liquid.tensors().items()}
        # A single number may have any stride, but its bytes can be read with that of one only.
        tensors["last"] = self.last.detach().cpu().clone(memory_format=torch.contiguous_format)
        header = {"kind": "ltc state", "format": FORMAT, "model": self.model, "sha256": digest(tensors)}
        header["tokens"] = ",".join(map(str, self.tokens))
        header["before"] = json.dumps(self.before)
        return save(tensors, metadata=header)

    @classmethod
    def load(cls, path: Path | str, model: Network) -> "TextState":
        """Read what `save` wrote.

        Args:
            path: The file.
            model: The model that has read the texts.

        Raises:
            ArtifactError: If the file is missing, damaged, no state, or the state of another model; one line.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"{path}: no such state file")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {os_reason(error, path)}") from None
        return cls.from_bytes(content, model, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, model: Network, path: str = "the state") -> "TextState":
        """Read the content of a file that `save` wrote.

        Args:
            content: The bytes.
            model: The model that has read the texts.
            path: What to call the file in an error.

        Raises:
            ArtifactError: As in `load`.
        """
        try:
            tensors, header = load(content), metadata(content)
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is damaged or not a state file: {one_line(error)}") from None
        if header.get("kind") != "ltc state":
            raise ArtifactError(f"{path} is not a state file")
        if header.get("format") != FORMAT:
            raise ArtifactError(f"{path} has format {header.get('format')}, this version reads {FORMAT}")
        if header.get("sha256") != digest(tensors):
            raise ArtifactError(f"{path} is damaged: its checksum does not match its tensors")
        if header.get("model") != model.fingerprint():
            raise ArtifactError(f"{path} is the state of another model: read the text again with this one")
        return cls._checked(path, current_names(tensors), header, model)

    @classmethod
    def _checked(cls, path: str, tensors: dict[str, Tensor], header: dict[str, str], model: Network) -> "TextState":
        last, counts = tensors.pop("last", None), header.get("tokens", "").split(",")
        if not all(count.isdecimal() for count in counts):
            raise ArtifactError(f"{path} is damaged: its numbers of tokens are {header.get('tokens')!r}")
        if last is None or last.dtype != torch.int64 or tuple(last.shape) != (len(counts),):
            raise ArtifactError(f"{path} is damaged: it lacks the last token of each text")
        if int(last.min()) < 0 or int(last.max()) >= model.settings.input_size:
            raise ArtifactError(f"{path} is damaged: its last tokens are not in the vocabulary")
        expected = model.initial_state(len(counts)).tensors()
        for name in sorted(expected.keys() | tensors.keys()):
            theirs, ours = (_kind(named.get(name)) for named in (tensors, expected))
            if theirs != ours:
                raise ArtifactError(f"{path} does not fit the model: {name}: expected {ours}, got {theirs}")
            if not bool(tensors[name].isfinite().all()):
                raise ArtifactError(f"{path} is damaged: {name} holds numbers that are not finite")
        device = next(iter(expected.values())).device
        liquid = LiquidState.from_tensors(tensors).to(device)
        before = _before(path, header.get("before"), len(counts), model.settings.input_size)
        return cls(liquid, last.to(device), tuple(map(int, counts)), header["model"], before)


def _before(path: str, text: str | None, batch_size: int, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """The tokens before the last ones, from a header; files of earlier versions have none."""
    if text is None:
        return ()
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        rows = None
    if not (isinstance(rows, list) and len(rows) == batch_size and all(_is_row(row, vocabulary) for row in rows)):
        raise ArtifactError(f"{path} is damaged: the tokens before its last ones are not in the vocabulary")
    return tuple(map(tuple, rows))


def _is_row(row: object, vocabulary: int) -> bool:
    if not isinstance(row, list) or len(row) > BEFORE:
        return False
    return all(type(token) is int and 0 <= token < vocabulary for token in row)


def mix(a: TextState, b: TextState, weight: float = 0.5) -> TextState:
    """Between two states: (1 - weight) a + weight b. The last token, and the number of tokens, are those of the nearer.

    Raises:
        UsageError: If the weight is not in 0..1, or the states are of different models or batches.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"mix: the weight must be in 0..1, got {weight}")
    _require_same_model(a, b)
    if a.batch_size != b.batch_size:
        raise UsageError(f"mix: the states hold {a.batch_size} and {b.batch_size} texts")
    other = iter([*b.liquid.neurons, *b.liquid.conv_state])
    near = a if weight <= 0.5 else b
    return TextState(
        a.liquid.map(lambda tensor: tensor.lerp(next(other), weight)), near.last, near.tokens, a.model, near.before
    )


def metadata(content: bytes) -> dict[str, str]:
    """The header fields of a safetensors file whose tensors were loaded before, which checks its form."""
    length = int.from_bytes(content[:8], "little")
    fields = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return {str(name): str(value) for name, value in fields.items()}


def _require_same_model(*states: TextState) -> None:
    if len({state.model for state in states}) > 1:
        raise UsageError("state: the states are of different models")


def _kind(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
