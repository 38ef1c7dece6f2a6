"""A text that was read, as an object: a prompt is read once, kept, forked, mixed with another, and continued.

    state = model.read(book, tokenizer)
    state.save("book.state")
    model.generate(state=TextState.load("book.state", model))

A `LiquidState` is the numbers alone. To go on writing takes one thing more, the last token, which the network has not
read yet, since reading it is what predicts the next one. `TextState` has both, and knows whose it is.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.io.hashing import digest, fingerprint, own_tensors
from ltc_textgen.layers.base import Elapsed
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Int, Tensor

FORMAT = "1"
CHUNK = 512
"""Tokens that go through the network at once: the memory of reading does not grow with the text."""


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
    """

    liquid: LiquidState
    last: Int[Tensor, " B"]
    tokens: tuple[int, ...]
    model: str

    @property
    def batch_size(self) -> int:
        """B, the number of texts."""
        return len(self.tokens)

    def require_model(self, model: Network) -> None:
        """Refuse to be continued by another model, or by this one after it has learned.

        Raises:
            UsageError: If it is another.
        """
        if model.fingerprint() != self.model:
            raise UsageError("state: another model has read this text, or this one has learned since: read it again")

    def select(self, rows: list[int]) -> "TextState":
        """Texts by number, in that order; repeats fork a state."""
        index = torch.tensor(rows, dtype=torch.int64)
        last = self.last.index_select(0, index.to(self.last.device))
        return TextState(self.liquid.select(index), last, tuple(self.tokens[row] for row in rows), self.model)

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
            tuple(torch.cat(parts) for parts in zip(*(state.columns for state in every), strict=True)),
        )
        tokens = tuple(count for state in states for count in state.tokens)
        return cls(liquid, torch.cat([state.last for state in states]), tokens, states[0].model)

    def save(self, path: Path | str) -> None:
        """Write the state to a safetensors file, whole or not at all.

        Raises:
            LTCError: If there is no space or no permission.
        """
        tensors = {name: tensor.detach().cpu() for name, tensor in self.liquid.tensors().items()}
        # A single number may have any stride, but its bytes can be read with that of one only.
        tensors["last"] = self.last.detach().cpu().clone(memory_format=torch.contiguous_format)
        header = {"kind": "ltc state", "format": FORMAT, "model": self.model, "sha256": digest(tensors)}
        header["tokens"] = ",".join(map(str, self.tokens))
        write_atomic(Path(path), save(tensors, metadata=header))

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
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                header = file.metadata() or {}
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged or not a state file: {str(error).splitlines()[0]}") from None
        if header.get("kind") != "ltc state":
            raise ArtifactError(f"{path} is not a state file")
        if header.get("format") != FORMAT:
            raise ArtifactError(f"{path} has format {header.get('format')}, this version reads {FORMAT}")
        if header.get("sha256") != digest(tensors):
            raise ArtifactError(f"{path} is damaged: its checksum does not match its tensors")
        if header.get("model") != model.fingerprint():
            raise ArtifactError(f"{path} is the state of another model: read the text again with this one")
        return cls._checked(path, tensors, header, model)

    @classmethod
    def _checked(cls, path: Path, tensors: dict[str, Tensor], header: dict[str, str], model: Network) -> "TextState":
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
        return cls(liquid, last.to(device), tuple(map(int, counts)), header["model"])


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
    other = iter([*b.liquid.neurons, *b.liquid.columns])
    near = a if weight <= 0.5 else b
    return TextState(a.liquid.map(lambda tensor: tensor.lerp(next(other), weight)), near.last, near.tokens, a.model)


class Reader:
    """The part of a network that reads texts and remembers them."""

    tokenizer: Any = None
    """What `read` turns text into ids with; `load_run` sets it."""

    def fingerprint(self) -> str:
        """Checksum of settings and weights: two models with the same one compute the same."""
        return f"{fingerprint(self.settings)[:32]}{digest(own_tensors(self))[:32]}"  # type: ignore

    @torch.no_grad()
    def read(
        self,
        text: str | list[str] | Tensor,
        tokenizer: Any = None,
        *,
        state: TextState | None = None,
        elapsed: Elapsed = None,
    ) -> TextState:
        """Read a text of any length, with memory that does not grow.

        Args:
            text: A text, several texts, or token ids (B, T).
            tokenizer: Of this package or of transformers; the one of the run directory if None.
            state: What was read before; the texts go on from there.
            elapsed: Time before each token, in token time: one for all, (T,) or (B, T); that before a text's first
                token is not used.

        Raises:
            UsageError: If a text has no tokens, there is no tokenizer, or the state is of another model or batch.
        """
        if isinstance(text, list):
            befores = [None] * len(text) if state is None else [state.select([i]) for i in range(state.batch_size)]
            if len(befores) != len(text):
                raise UsageError(f"state: expected {len(text)} texts, got {len(befores)}")
            pairs = zip(text, befores, strict=True)
            return TextState.stack([self.read(one, tokenizer, state=s, elapsed=elapsed) for one, s in pairs])
        ids = self._ids(text, tokenizer)
        batch, tokens = ids.shape
        time = torch.as_tensor(1.0 if elapsed is None else elapsed, device=ids.device)
        if time.ndim == 1 and time.shape[0] not in (1, tokens):
            raise UsageError(f"read: expected {tokens} elapsed times, got {time.shape[0]}")
        time = time.to(torch.float32).expand(batch, tokens)
        liquid, count = None, (tokens,) * batch
        if state is None:
            time = time[:, 1:]
        else:
            state.require_model(self)  # type: ignore[arg-type]
            if state.batch_size != batch:
                raise UsageError(f"state: expected {batch} texts, got {state.batch_size}")
            ids = torch.cat([state.last.to(ids.device)[:, None], ids], dim=1)
            liquid, count = state.liquid, tuple(tokens + before for before in state.tokens)
        with evaluating(self):  # type: ignore[arg-type]
            after = self._advance(ids[:, :-1], liquid, time)
        return TextState(after.detach(), ids[:, -1], count, self.fingerprint())

    def _advance(self, ids: Tensor, liquid: LiquidState | None, time: Tensor) -> LiquidState:
        if not ids.shape[1]:
            return self.initial_state(ids.shape[0])  # type: ignore[attr-defined]
        for piece, times in zip(ids.split(CHUNK, dim=1), time.split(CHUNK, dim=1), strict=True):
            _, liquid = self.advance(piece, liquid, times)  # type: ignore[attr-defined]
        assert liquid is not None
        return liquid

    def _ids(self, text: str | Tensor, tokenizer: Any) -> Tensor:
        weight = self.embedding.weight  # type: ignore[attr-defined]
        if isinstance(text, str):
            tokenizer = self.tokenizer if tokenizer is None else tokenizer
            if tokenizer is None:
                raise UsageError("read: give a tokenizer, or load the model with load_run")
            plain = {"add_special_tokens": False} if _of_transformers(tokenizer) else {}
            text = torch.tensor([tokenizer.encode(text, **plain)], dtype=torch.int64)
        if not isinstance(text, Tensor):
            raise UsageError(f"read: expected a text, several texts, or token ids, got {type(text).__name__}")
        if text.ndim != 2 or 0 in text.shape:
            raise UsageError(f"read: expected (B, T) token ids with B, T >= 1, got {tuple(text.shape)}")
        low, high, size = int(text.min()), int(text.max()), weight.shape[0]
        if low < 0 or high >= size:
            raise UsageError(f"read: token ids must be in 0..{size - 1}, got {low if low < 0 else high}")
        return text.to(weight.device)


def _require_same_model(*states: TextState) -> None:
    if len({state.model for state in states}) > 1:
        raise UsageError("state: the states are of different models")


def _of_transformers(tokenizer: Any) -> bool:
    # Whoever has such a tokenizer has imported transformers, which takes seconds that others need not spend.
    module = sys.modules.get("transformers.tokenization_utils_base")
    return module is not None and isinstance(tokenizer, module.PreTrainedTokenizerBase)


def _kind(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
