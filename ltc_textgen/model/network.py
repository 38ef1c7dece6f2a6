"""The mathematics of the network, in PyTorch alone: embedding -> liquid layers -> output layer.

    ids (B, T) --embedding--> (B, T, D) --num_layers layers--> hidden (B, T, D) --head--> logits (B, T, V)

`model.LiquidTimeConstantNetwork` is this network as a model of transformers. What only writes text has no use for that,
and starts in half of the time without it: nothing here imports transformers.

Reading text without learning from it: what generation and evaluation share.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ltc_textgen.config import ModelConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.dispatch import record
from ltc_textgen.layers.base import broadcast_elapsed
from ltc_textgen.model.blocks import LayerState, LockedDropout, build_layer
from ltc_textgen.model.blocks import evaluating as evaluating
from ltc_textgen.model.heads import build_head
from ltc_textgen.model.state import LiquidState
from ltc_textgen.model.text_state import Reader
from ltc_textgen.shapes import Bool, Float, Int, Tensor

FIRST_STD = 0.02
"""Spread of the embedding at the start when the output layer shares it, so that the first logits are small."""


@record
class LiquidNetwork(Reader, nn.Module):
    """A liquid time-constant network over token ids.

    Its parameters have the names, and compute the numbers, of those of `LiquidTimeConstantNetwork`, to the bit.

    Args:
        settings: Vocabulary, width, layers and the rest.

    Example:
        >>> network = LiquidNetwork(ModelConfig(input_size=65, hidden_size=32))
        >>> hidden, state = network.advance(torch.zeros(1, 8, dtype=torch.long))
        >>> network.head.logits(hidden).shape
        torch.Size([1, 8, 65])
    """

    if TYPE_CHECKING:  # for mypy every part is one or the other, and what transformers adds it does not know

        def __getattr__(self, name: str) -> Any: ...

    _tied_weights_keys = {"head.projection.weight": "embedding.weight"}

    def __init__(self, settings: ModelConfig) -> None:
        super().__init__()
        self._build(settings)
        self._init_weights(self.embedding)  # the other parts start as they are made
        if settings.tie_embeddings:
            self.head.projection.weight = self.embedding.weight

    def _build(self, settings: ModelConfig) -> None:
        """Make the parts, with weights as their own constructors start them."""
        self.settings = settings
        self.embedding = nn.Embedding(settings.input_size, settings.hidden_size)
        self.dropout = LockedDropout(settings.embedding_dropout)
        self.layers: Any = nn.ModuleList(build_layer(settings) for _ in range(settings.num_layers))
        deep = settings.block == "liquid"
        self.norm = nn.RMSNorm(settings.hidden_size) if deep else nn.Identity()
        self.head: Any = build_head(settings)
        self.gradient_checkpointing = False

    def initial_state(self, batch_size: int) -> LiquidState:
        """The state before the first token: rest."""
        return _join([layer.initial_state(batch_size) for layer in self.layers])

    def advance(
        self,
        input_ids: Int[Tensor, "B T"],
        state: LiquidState | None = None,
        elapsed: Float[Tensor, "..."] | float | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LiquidState]:
        """Read tokens: hidden vectors for the head, and the state after the last token.

        Reading T tokens at once, in chunks or one by one gives the same numbers.

        Args:
            input_ids: Token ids.
            state: State before the first token; rest if None.
            elapsed: Time from each token to the next, in token time; (), (B,), (B, 1) or (B, T); 1 if None.
            mask: False where a token is padding, anywhere in the sequence. Padding moves no state.

        Raises:
            UsageError: If an id lies outside the vocabulary, or a shape does not fit.
        """
        hidden, after, _ = self._read(input_ids, state, elapsed, mask, keep=False)
        return hidden, after

    def time_constants(
        self,
        input_ids: Int[Tensor, "B T"],
        state: LiquidState | None = None,
        elapsed: Float[Tensor, "..."] | float | None = None,
    ) -> list[Float[Tensor, "B T _"]]:
        """Time constant of every neuron at every token, in token time, one tensor per layer.

        tau_sys = C / G, and in a closed form (cfc) the time in which its gate's argument moves by one. Arguments as in
        `advance`; there is no dropout.
        """
        batch, tokens = self._check(input_ids, state, None)
        time = broadcast_elapsed(elapsed, batch, tokens, self.embedding.weight)
        hidden, constants = self._embed(input_ids), []
        before = _split(self.initial_state(batch) if state is None else state)
        for layer, layer_state in zip(self.layers, before, strict=True):
            hidden, tau = layer.observe(hidden, layer_state, time)
            constants.append(tau)
        return constants

    def _read(
        self, input_ids: Tensor, state: LiquidState | None, elapsed: Any, mask: Tensor | None, keep: bool
    ) -> tuple[Tensor, LiquidState, list[Tensor]]:
        batch, tokens = self._check(input_ids, state, mask)
        time = broadcast_elapsed(elapsed, batch, tokens, self.embedding.weight)
        lengths = order = None
        if mask is not None and not bool(mask.all()):
            # Padding goes to the right, in every sequence, so that a layer needs to know only the lengths.
            order = torch.argsort((~mask).int(), dim=1, stable=True)
            input_ids, time, lengths = input_ids.gather(1, order), time.gather(1, order), mask.sum(1)
            mask = torch.arange(tokens, device=mask.device) < lengths[:, None]
        else:
            mask = None
        hidden = self.dropout(self._embed(input_ids))
        before = _split(self.initial_state(batch) if state is None else state)
        after, every = [], [hidden]
        for layer, layer_state in zip(self.layers, before, strict=True):
            hidden, layer_after = self._call(layer, hidden, layer_state, time, mask, lengths)
            after.append(layer_after)
            every += [hidden] if keep else []
        hidden = self.norm(hidden)
        if order is not None:
            hidden, *every = (
                torch.empty_like(h).scatter(1, order[:, :, None].expand_as(h), h) for h in [hidden, *every]
            )
        return hidden, _join(after), every

    def _call(self, layer: nn.Module, *args: Any) -> tuple[Tensor, LayerState]:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

    def _embed(self, input_ids: Tensor) -> Tensor:
        if not input_ids.is_cpu:  # where a lookup outside the table is no exception
            self._refuse_unknown_ids(input_ids)
        try:
            return self.embedding(input_ids)
        except IndexError:
            self._refuse_unknown_ids(input_ids)
            raise

    def _refuse_unknown_ids(self, input_ids: Tensor) -> None:
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
            columns = self.settings.block == "liquid" and (self.settings.conv_width - 1, self.settings.hidden_size)
            state.require(len(self.layers), (batch, self.settings.neurons), (batch, *columns) if columns else None)
        return batch, tokens

    def _init_weights(self, module: nn.Module) -> None:
        """The weights of one module before training. transformers calls it for those that are not in a file."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=FIRST_STD if self.settings.tie_embeddings else 1.0)
        elif isinstance(module, nn.Module) and callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _split(state: LiquidState) -> list[LayerState]:
    columns = state.columns or (None,) * len(state.neurons)
    return list(zip(state.neurons, columns, strict=True))


def _join(states: list[LayerState]) -> LiquidState:
    neurons, columns = zip(*states, strict=True)
    return LiquidState(tuple(neurons), tuple(c for c in columns if c is not None))


CHUNK = 512
"""Tokens of a sequence that go through the network at once: the memory of reading does not grow with the text."""


@torch.inference_mode()
def read(
    model: LiquidNetwork, ids: Int[Tensor, "B T"], state: LiquidState | None = None, chunk: int = CHUNK
) -> tuple[Float[Tensor, "B D"], LiquidState]:
    """Read tokens of any number in chunks.

    Args:
        model: Network, in evaluation mode (see `evaluating`).
        ids: Token ids, T >= 1, on any device.
        state: State before the first token; rest if None.
        chunk: Tokens read at once; the result does not depend on it.

    Returns:
        Hidden vector at the last token, which predicts the next one, and the state after it.
    """
    device = model.embedding.weight.device
    first, *others = ids.split(chunk, dim=1)
    hidden, after = model.advance(first.to(device), state)
    for piece in others:
        hidden, after = model.advance(piece.to(device), after)
    return hidden[:, -1], after
