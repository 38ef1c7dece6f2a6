"""The network in PyTorch alone: embedding, liquid layers, output layer.

    ids (B, T) --embed_tokens--> (B, T, D) --num_layers layers--> hidden (B, T, D) --lm_head--> logits (B, T, V)

`hf.modeling.LiquidTimeConstantNetwork` is this network as a model of transformers. Generation and evaluation do not
need transformers; nothing here imports it, which halves their start-up time.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ltc_textgen.config import ModelConfig
from ltc_textgen.data.normalize import normalize
from ltc_textgen.errors import UsageError
from ltc_textgen.io.hashing import digest, fingerprint, own_tensors
from ltc_textgen.io.tensor_names import original_names
from ltc_textgen.kernels.dispatch import record
from ltc_textgen.layers.base import Elapsed, broadcast_elapsed
from ltc_textgen.model.blocks import (
    LayerState,
    LiquidBlock,
    LockedDropout,
    Observation,
    PlainLayer,
    Trajectory,
    build_layer,
    own_trajectory,
)
from ltc_textgen.model.blocks import evaluating as evaluating
from ltc_textgen.model.heads import AdaptiveHead, FullHead, build_head
from ltc_textgen.model.state import LiquidState
from ltc_textgen.model.text_state import BEFORE, TextState
from ltc_textgen.shapes import Bool, Float, Int, Shaped, Tensor

FIRST_STD = 0.02
"""Standard deviation of a tied embedding at initialisation, so that the first logits are small."""

CHUNK = 512
"""Tokens of a sequence that are read at once: the memory of reading does not grow with the text."""


@record
class LiquidNetwork(nn.Module):
    """A liquid time-constant network over token ids.

    Its parameters have the names, and compute the numbers, of those of `LiquidTimeConstantNetwork`, to the bit.

    Args:
        settings: Vocabulary, width, layers and the rest.

    Example:
        >>> network = LiquidNetwork(ModelConfig(input_size=65, hidden_size=32))
        >>> hidden, state = network.advance(torch.zeros(1, 8, dtype=torch.long))
        >>> network.lm_head.logits(hidden).shape
        torch.Size([1, 8, 65])
    """

    settings: ModelConfig
    layers: nn.ModuleList
    lm_head: FullHead | AdaptiveHead
    tokenizer: Any = None
    """The tokenizer that `read` encodes text with; `load_run` sets it."""

    _tied_weights_keys = {"lm_head.projection.weight": "embed_tokens.weight"}

    def __init__(self, settings: ModelConfig) -> None:
        super().__init__()
        self._build(settings)
        self._init_weights(self.embed_tokens)  # the other modules initialise themselves
        if settings.tie_embeddings:
            assert isinstance(self.lm_head, FullHead), "see ModelConfig"
            self.lm_head.projection.weight = self.embed_tokens.weight

    def _build(self, settings: ModelConfig) -> None:
        """Build the modules, initialised by their own constructors."""
        self.settings = settings
        self.embed_tokens = nn.Embedding(settings.input_size, settings.hidden_size)
        self.dropout = LockedDropout(settings.embedding_dropout)
        self.layers = nn.ModuleList(build_layer(settings) for _ in range(settings.num_layers))
        deep = settings.block == "liquid"
        self.norm = nn.RMSNorm(settings.hidden_size) if deep else nn.Identity()
        self.lm_head = build_head(settings)
        self.gradient_checkpointing = False

    def initial_state(self, batch_size: int) -> LiquidState:
        """The state before the first token: zero, or learned (`learned_initial_state`)."""
        return _join([layer.initial_state(batch_size) for layer in self.stack()])

    def stack(self) -> Iterator[PlainLayer | LiquidBlock]:
        """The layers, from the embedding to the output."""
        for layer in self.layers:
            yield cast("PlainLayer | LiquidBlock", layer)  # or what stands in for one

    def advance(
        self,
        input_ids: Int[Tensor, "B T"],
        state: LiquidState | None = None,
        elapsed: Elapsed = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LiquidState]:
        """Read tokens: hidden vectors for the output layer, and the state after the last token.

        Reading T tokens at once, in chunks or one by one gives the same numbers.

        Args:
            input_ids: Token ids.
            state: State before the first token; the initial state if None.
            elapsed: Time from each token to the next, in token time: a number or a tensor of shape (), (B, 1) or
                (B, T); 1 if None.
            mask: False where a token is padding, anywhere in the sequence. Padding does not change the state.

        Raises:
            UsageError: If an id lies outside the vocabulary, or a shape does not fit.
        """
        hidden, after, _ = self._read(input_ids, state, elapsed, mask, keep=False)
        return hidden, after

    def time_constants(
        self,
        input_ids: Int[Tensor, "B T"],
        state: LiquidState | None = None,
        elapsed: Elapsed = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> list[Float[Tensor, "B T _"]]:
        """Time constant of every neuron at every token, in token time, one tensor per layer; NaN at padding.

        tau_sys = C / G; in a closed form (cfc) the time in which the argument of its gate changes by one. Arguments as
        in `advance`; there is no dropout.
        """
        batch, tokens = self._check(input_ids, state, mask)
        time = broadcast_elapsed(elapsed, batch, tokens, self.embed_tokens.weight)
        padding = Padding.of(mask)
        ids, time = padding.to_the_right(input_ids), padding.to_the_right(time)
        hidden, constants = self._embed(ids), []
        before = _split(self.initial_state(batch) if state is None else state)
        for layer, layer_state in zip(self.stack(), before, strict=True):
            seen = layer.observe(hidden, layer_state, time)
            hidden = seen.output
            constants.append(padding.to_its_place(seen.tau, float("nan")))
        return constants

    def observe(
        self,
        input_ids: Int[Tensor, "B T"],
        state: LiquidState | None = None,
        elapsed: Elapsed = None,
        trajectories: Sequence[Trajectory] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], list[Observation], LiquidState]:
        """Read tokens as `advance` does, without dropout, and see every neuron.

        Args:
            input_ids: Token ids.
            state: State before the first token; the initial state if None.
            elapsed: As in `advance`.
            trajectories: One per layer: how its neurons move, in place of the layer's own equation.

        Returns:
            Hidden vectors for the output layer, what each layer did, and the state after the last token.
        """
        batch, tokens = self._check(input_ids, state, None)
        time = broadcast_elapsed(elapsed, batch, tokens, self.embed_tokens.weight)
        hidden, observations = self._embed(input_ids), list[Observation]()
        before = _split(self.initial_state(batch) if state is None else state)
        moves = trajectories or [own_trajectory] * len(before)
        for layer, layer_state, move in zip(self.stack(), before, moves, strict=True):
            observations.append(layer.observe(hidden, layer_state, time, move))
            hidden = observations[-1].output
        return self.norm(hidden), observations, _join([seen.after for seen in observations])

    def fingerprint(self) -> str:
        """Checksum of settings and weights: two networks with the same one compute the same."""
        weights = original_names(own_tensors(self))
        return f"{fingerprint(self.settings)[:32]}{digest(weights)[:32]}"

    @torch.no_grad()
    def read(
        self,
        text: str | list[str] | Tensor,
        tokenizer: Any = None,
        *,
        state: TextState | None = None,
        elapsed: Elapsed = None,
        gap: float = 1.0,
    ) -> TextState:
        """Read a text of any length, with memory that does not grow.

        Args:
            text: A text, several texts, or token ids (B, T).
            tokenizer: Of this package or of transformers; that of the run directory if None.
            state: What was read before; the texts continue it.
            elapsed: Time from each token to the next, in token time: one number, (1, T) or (B, T). The last value is
                not used: a text's last token is integrated when the text continues.
            gap: Time from the last token of `state` to the first of the text.

        Raises:
            UsageError: If a text has no tokens, there is no tokenizer, or the state is of another network or batch.
        """
        if isinstance(text, list):
            befores = [None] * len(text) if state is None else [state.select([i]) for i in range(state.batch_size)]
            if len(befores) != len(text):
                raise UsageError(f"state: expected {len(text)} texts, got {len(befores)}")
            pairs = zip(text, befores, strict=True)
            read = [self.read(one, tokenizer, state=before, elapsed=elapsed, gap=gap) for one, before in pairs]
            return TextState.stack(read)
        ids = self.token_ids(text, tokenizer)
        batch, tokens = ids.shape
        time = _per_token(elapsed, ids)
        liquid, count = None, (tokens,) * batch
        if state is not None:
            state.require_model(self)
            if state.batch_size != batch:
                raise UsageError(f"state: expected {batch} texts, got {state.batch_size}")
            ids = torch.cat([state.last.to(ids.device)[:, None], ids], dim=1)
            time = torch.cat([time.new_full((batch, 1), gap), time], dim=1)
            liquid, count = state.liquid, tuple(tokens + before for before in state.tokens)
        with evaluating(self):
            last = deque(read_chunks(self, ids[:, :-1], liquid, time[:, :-1]), maxlen=1)
        after = last[0][1] if last else self.initial_state(batch)
        kept = ids[:, :-1][:, -BEFORE:].tolist()
        if state is not None:
            kept = [[*old, *new][-BEFORE:] for old, new in zip(state.before, kept, strict=True)]
        before = tuple(map(tuple, kept))
        return TextState(after.detach(), ids[:, -1], count, self.fingerprint(), before)

    def token_ids(self, text: str | Tensor, tokenizer: Any = None) -> Int[Tensor, "B T"]:
        """The ids of a text, or checked ids, on the device of the weights.

        Raises:
            UsageError: As `read`.
        """
        weight = self.embed_tokens.weight
        if isinstance(text, str):
            tokenizer = self.tokenizer if tokenizer is None else tokenizer
            if tokenizer is None:
                raise UsageError("read: give a tokenizer, or load the model with load_run")
            plain = {"add_special_tokens": False} if _of_transformers(tokenizer) else {}
            text = torch.tensor([tokenizer.encode(normalize(text), **plain)], dtype=torch.int64)
        if not isinstance(text, Tensor):
            raise UsageError(f"read: expected a text, several texts, or token ids, got {type(text).__name__}")
        if text.ndim != 2 or 0 in text.shape:
            raise UsageError(f"read: expected (B, T) token ids with B, T >= 1, got {tuple(text.shape)}")
        low, high, size = int(text.min()), int(text.max()), weight.shape[0]
        if low < 0 or high >= size:
            raise UsageError(f"read: token ids must be in 0..{size - 1}, got {low if low < 0 else high}")
        return text.to(weight.device)

    def _read(
        self,
        input_ids: Tensor,
        state: LiquidState | None,
        elapsed: Any,
        mask: Tensor | None,
        keep: bool,
        embeds: Tensor | None = None,
    ) -> tuple[Tensor, LiquidState, list[Tensor]]:
        """Read tokens, or embedded ones.

        Returns:
            Hidden vectors after the final norm, the state, and with `keep` the inputs of every layer.
        """
        batch, tokens = self._check(input_ids, state, mask)
        time = broadcast_elapsed(elapsed, batch, tokens, self.embed_tokens.weight)
        padding = Padding.of(mask)
        hidden = self._embed(padding.to_the_right(input_ids)) if embeds is None else padding.to_the_right(embeds)
        hidden, time = self.dropout(hidden), padding.to_the_right(time)
        before = _split(self.initial_state(batch) if state is None else state)
        after, every = [], []
        for layer, layer_state in zip(self.stack(), before, strict=True):
            every += [hidden] if keep else []
            hidden, layer_after = self._call(layer, hidden, layer_state, time, padding.mask, padding.lengths)
            after.append(layer_after)
        hidden, *every = (padding.to_its_place(h) for h in (self.norm(hidden), *every))
        return hidden, _join(after), every

    def _call(self, layer: nn.Module, *args: Any) -> tuple[Tensor, LayerState]:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

    def _embed(self, input_ids: Tensor) -> Tensor:
        if not input_ids.is_cpu:  # where a lookup outside the table is no exception
            self._reject_unknown_ids(input_ids)
        try:
            return self.embed_tokens(input_ids)
        except IndexError:
            self._reject_unknown_ids(input_ids)
            raise

    def _reject_unknown_ids(self, input_ids: Tensor) -> None:
        low, high = (int(bound) for bound in torch.aminmax(input_ids))
        if low < 0 or high >= self.settings.input_size:
            raise UsageError(f"input_ids: expected 0 to {self.settings.input_size - 1}, got {low if low < 0 else high}")

    def _check(self, input_ids: Tensor, state: LiquidState | None, mask: Tensor | None) -> tuple[int, int]:
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise UsageError(f"input_ids: expected (B, T) with B, T >= 1, got {tuple(input_ids.shape)}")
        if input_ids.is_floating_point():
            raise UsageError(f"input_ids: expected integers, got {input_ids.dtype}")
        batch, tokens = input_ids.shape
        if mask is not None and (mask.shape != input_ids.shape or mask.dtype != torch.bool):
            expected = f"expected torch.bool of {(batch, tokens)}"
            raise UsageError(f"mask: {expected}, got {mask.dtype} of {tuple(mask.shape)}")
        if state is not None:
            conv_state = self.settings.block == "liquid" and (self.settings.conv_width - 1, self.settings.hidden_size)
            state.require(
                len(self.layers), (batch, self.settings.neurons), (batch, *conv_state) if conv_state else None
            )
        return batch, tokens

    def _init_weights(self, module: nn.Module) -> None:
        """The weights of one module before training. transformers calls it for those that are not in a file."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=FIRST_STD if self.settings.tie_embeddings else 1.0)
        elif isinstance(module, nn.Module) and callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _split(state: LiquidState) -> list[LayerState]:
    conv_state = state.conv_state or (None,) * len(state.neurons)
    return list(zip(state.neurons, conv_state, strict=True))


def _join(states: list[LayerState]) -> LiquidState:
    neurons, conv_state = zip(*states, strict=True)
    return LiquidState(tuple(neurons), tuple(c for c in conv_state if c is not None))


class Padding(NamedTuple):
    """The padding of a batch, and the permutation that sorts it to the right of every sequence, and back.

    Layers then need to know only the lengths. Without padding all three are None and nothing is moved.

    Args:
        order: Position of the token that comes first, second, ..., real tokens before padding, (B, T).
        mask: False at padding, after sorting, (B, T).
        lengths: Real tokens of each sequence, (B,).
    """

    order: Tensor | None = None
    mask: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, mask: Bool[Tensor, "B T"] | None) -> "Padding":
        """The padding that a mask describes: False where a token is padding."""
        if mask is None or bool(mask.all()):
            return cls()
        order, lengths = torch.argsort((~mask).int(), dim=1, stable=True), mask.sum(1)
        return cls(order, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None], lengths)

    def to_the_right(self, values: Shaped[Tensor, "B T *rest"]) -> Shaped[Tensor, "B T *rest"]:
        """Values of each token, those of padding last."""
        return values if self.order is None else values.gather(1, self._index(values))

    def to_its_place(
        self, values: Shaped[Tensor, "B T *rest"], filler: float | None = None
    ) -> Shaped[Tensor, "B T *rest"]:
        """The inverse of `to_the_right`; values at padding become `filler`, or stay if it is None."""
        if self.order is None or self.mask is None:
            return values
        if filler is not None:
            values = values.masked_fill(~self.mask.view(*self.mask.shape, *(1,) * (values.ndim - 2)), filler)
        return torch.empty_like(values).scatter(1, self._index(values), values)

    def _index(self, values: Tensor) -> Tensor:
        assert self.order is not None
        return self.order.view(*self.order.shape, *(1,) * (values.ndim - 2)).expand_as(values)


def read_chunks(
    network: LiquidNetwork,
    input_ids: Int[Tensor, "B _"] | np.ndarray,
    state: LiquidState | None = None,
    elapsed: Float[Tensor, "B _"] | None = None,
    chunk: int = CHUNK,
) -> Iterator[tuple[Float[Tensor, "B _ D"], LiquidState]]:
    """Read tokens of any number, chunk by chunk; the result does not depend on the chunks.

    Args:
        network: In the mode that the caller wants (see `evaluating`).
        input_ids: Token ids, (B, T): on any device, or an array of any integers, which may be memory-mapped; no token
            gives no chunk.
        state: State before the first token.
        elapsed: Time from each token to the next; 1 if None.
        chunk: Tokens read at once.

    Yields:
        Hidden vectors of the chunk's tokens, and the state after them, through which no gradient flows.
    """
    device = network.embed_tokens.weight.device
    for start in range(0, input_ids.shape[1], chunk):
        part = slice(start, start + chunk)
        time = None if elapsed is None else elapsed[:, part]
        ids = input_ids[:, part]
        ids = torch.from_numpy(ids.astype(np.int64)) if isinstance(ids, np.ndarray) else ids
        hidden, after = network.advance(ids.to(device), state, time)
        state = after.detach()
        yield hidden, state


@torch.inference_mode()
def read(
    model: LiquidNetwork, ids: Int[Tensor, "B T"], state: LiquidState | None = None, chunk: int = CHUNK
) -> tuple[Float[Tensor, "B D"], LiquidState]:
    """Read tokens, and return what predicts the next one.

    Args:
        model: Network, in evaluation mode (see `evaluating`).
        ids: Token ids, T >= 1, on any device.
        state: State before the first token; the initial state if None.
        chunk: Tokens read at once.

    Returns:
        Hidden vector at the last token, which predicts the next one, and the state after it.
    """
    ((hidden, after),) = deque(read_chunks(model, ids, state, chunk=chunk), maxlen=1)
    return hidden[:, -1], after


def _per_token(elapsed: Elapsed, ids: Tensor) -> Float[Tensor, "B T"]:
    """Elapsed times of the tokens of texts; as in `broadcast_elapsed`, and (T,) for a single text."""
    if isinstance(elapsed, Tensor) and elapsed.ndim == 1 and ids.shape[0] == 1:
        elapsed = elapsed[None]
    batch, tokens = ids.shape
    return broadcast_elapsed(elapsed, batch, tokens, torch.empty(0, device=ids.device))


def _of_transformers(tokenizer: Any) -> bool:
    # Whoever has such a tokenizer has imported transformers, which takes seconds that others need not spend.
    module = sys.modules.get("transformers.tokenization_utils_base")
    return module is not None and isinstance(tokenizer, module.PreTrainedTokenizerBase)
