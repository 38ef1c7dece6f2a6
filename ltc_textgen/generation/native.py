"""A model on the native decoder: which models that is possible for, and their parameters as it takes them.

The decoder (`kernels.decoder`) is a second implementation of blocks, head and sampling. So that it never writes
something that the model would not, it is compared with the model on a few tokens each time it is made.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.autograd import dense
from ltc_textgen.kernels.decoder import Decoder, Weights
from ltc_textgen.kernels.decoder_rows import Choice, Rows, Work, Written
from ltc_textgen.kernels.dispatch import changed, fits_cpu, is_standard, observed, report
from ltc_textgen.kernels.library import LIBRARY, WHY_NOT
from ltc_textgen.kernels.liquid_block import BlockWeights
from ltc_textgen.kernels.matmul import Linear
from ltc_textgen.layers.diagonal import DiagonalLTC
from ltc_textgen.model.blocks import CausalConvolution, LearnedInitialState, LiquidBlock, LockedDropout, evaluating
from ltc_textgen.model.heads import FullHead
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Bool, Float, Int, Tensor

KNOWN: tuple[type[nn.Module], ...] = (
    *(LiquidBlock, LearnedInitialState, CausalConvolution, LockedDropout, DiagonalLTC, FullHead),
    *(nn.Embedding, nn.ModuleList, nn.RMSNorm, Linear, nn.Linear),
)
"""Modules whose mathematics the decoder implements, besides the network itself; subclasses before their bases."""

READ = ("advance", "_read", "_call", "_embed")
"""Methods of a network whose place the decoder takes."""

TOKENS_PER_CALL = 4096
"""Tokens of a text that one call reads: a tenth of a second or so, after which an interrupt is noticed."""

PROBE_TOKENS = 6
AGREEMENT = 1e-3
"""Largest difference of logits in the comparison, in units of the largest logit (or of 1, if that is smaller)."""


def why_not(model: LiquidNetwork) -> str:
    """Why the native decoder cannot decode this model; empty if it can.

    It takes networks of liquid blocks with the diagonal coupling and one softmax over the vocabulary, in float32 on
    the CPU.
    """
    settings = model.settings
    if LIBRARY is None:
        return f"there are no CPU kernels here: {WHY_NOT}"
    if not fits_cpu(*model.parameters()):
        weight = model.embed_tokens.weight
        there = f"{weight.dtype} on {weight.device}, kernels: {report()['override']}"
        return f"it needs float32 weights on the cpu and kernels switched on; here: {there}"
    for name, value, needed in (
        ("block", settings.block, "liquid"),
        ("coupling", settings.coupling, "diagonal"),
        ("head", settings.head, "full"),
    ):
        if value != needed:
            return f"it needs {name} = {needed}, the model has {value}"
    for name, module in model.named_modules():
        kind = LiquidNetwork if module is model else next((kind for kind in KNOWN if isinstance(module, kind)), None)
        if kind is None:
            return f"the model has a part that it does not have: {name}, a {type(module).__name__}"
        if changed(model, LiquidNetwork, *READ) if module is model else observed(module, kind):
            return f"{name or 'the network'} has a hook, or methods that were changed"
    if model.embed_tokens.max_norm is not None:
        return "the embedding has a max_norm"
    return _unlike(model)


def _unlike(model: LiquidNetwork) -> str:
    """What the blocks do not have in common, or the decoder does not have; empty if nothing."""
    cells = _cells(model)
    if len({(cell.method, cell.step_size) for cell in cells}) > 1:
        return "its layers differ in their solver or time"
    return "" if is_standard(cells[0].solver) else f"its solver is not that of the package: {cells[0].solver}"


def _cells(model: LiquidNetwork) -> list[DiagonalLTC]:
    return [layer.cell for layer in model.stack() if isinstance(layer.cell, DiagonalLTC)]


class Drawn(NamedTuple):
    """What `NativeDecoder.draw` gives.

    Args:
        tokens: Drawn tokens; -1 after a row's end.
        done: How many of them each row has drawn: fewer than asked for if one was a stop.
        broken: First row of which no further token can be drawn because its logits are NaN or infinite; None if all
            can.
    """

    tokens: Int[Tensor, "B _"]
    done: list[int]
    broken: int | None


class NativeDecoder:
    """A model that is read and written by one call for many tokens.

    Its weights are a copy: after a step of training, make another one.

    Args:
        model: Network that `why_not` has nothing against.
        int8: Weights of 8 bits: faster, and not quite the same model.

    Raises:
        UsageError: If the model cannot be decoded natively; the message says why.
    """

    def __init__(self, model: LiquidNetwork, *, int8: bool = False) -> None:
        if reason := why_not(model):
            raise UsageError(f"the native decoder cannot decode this model: {reason}")
        self.settings, cell = model.settings, _cells(model)[0]
        self._method, self._step_size = cell.method, cell.step_size
        weights = weights_of(model)
        self._start = model.initial_state(1).detach()
        self.core = self._pack(weights, int8=False)
        self._prove(model)
        if int8:
            self.core = self._pack(weights, int8=True)

    def _pack(self, weights: Weights, *, int8: bool) -> Decoder:
        return Decoder(weights, self._method, step_size=self._step_size, int8=int8)

    @torch.no_grad()
    def _prove(self, model: LiquidNetwork) -> None:
        ids = torch.linspace(0, self.settings.input_size - 1, PROBE_TOKENS).long()[None]
        with evaluating(model):
            expected = model.lm_head.logits(model.advance(ids)[0])
        got, _ = self.logits(ids)
        scale = max(1.0, float(expected.nan_to_num(posinf=0.0, neginf=0.0).abs().amax()))
        if not torch.allclose(got, expected, rtol=0.0, atol=AGREEMENT * scale, equal_nan=True):
            raise UsageError("the native decoder cannot decode this model: it computes something else than the model")

    def initial_state(self, batch_size: int) -> LiquidState:
        """The state before the first token."""
        return self._start.select(torch.zeros(batch_size, dtype=torch.int64))

    def logits(
        self, ids: Int[Tensor, "B T"], state: LiquidState | None = None, *, elapsed: float = 1.0
    ) -> tuple[Float[Tensor, "B T V"], LiquidState]:
        """What the model predicts after each token, and the state after the last.

        Args:
            ids: Token ids.
            state: State before the first token; that of a fresh text if None.
            elapsed: Time from each token to the next, in token time.

        Raises:
            UsageError: If an id lies outside the vocabulary, or the state is of another network or batch.
        """
        state = self._before(ids, state)
        rows, slots = self.rows(state, Choice(), elapsed=elapsed)
        written = rows.run([Work(slot, row, logits=True) for slot, row in zip(slots, ids.numpy(), strict=True)])
        logits = torch.from_numpy(np.stack([row.logits for row in written if row.logits is not None]))
        return logits, state_of(rows)

    def read(self, ids: Int[Tensor, "B T"], state: LiquidState | None = None, *, elapsed: float = 1.0) -> LiquidState:
        """The state after some tokens. Arguments and errors as in `logits`."""
        rows, slots = self.rows(self._before(ids, state), Choice(), elapsed=elapsed)
        for part in ids.split(TOKENS_PER_CALL, dim=1):
            rows.run([Work(slot, row) for slot, row in zip(slots, part.numpy(), strict=True)])
        return state_of(rows)

    def draw(
        self,
        ids: Int[Tensor, "B T"],
        state: LiquidState | None,
        choice: Choice,
        count: int,
        uniform: Float[Tensor, "B _"] | None = None,
        seen: Bool[Tensor, "B V"] | None = None,
    ) -> tuple[Drawn, LiquidState]:
        """Read tokens, then draw `count` of each row, reading each but the last.

        Args:
            ids: Token ids, int64.
            state: State before the first token; that of a fresh text if None.
            choice: How to draw.
            count: Tokens to draw, >= 1.
            uniform: Numbers in [0, 1), float64, one per token; needed unless the temperature is 0.
            seen: Tokens to penalize; drawn tokens are added to it. Needed with a repetition penalty.

        Returns:
            What was drawn, and the state before the last drawn token of each row, which no one has read yet.

        Raises:
            UsageError: If a shape, dtype or value does not fit.
        """
        state = self._before(ids, state)
        if count < 1:
            raise UsageError(f"count: expected 1 or more, got {count}")
        B = ids.shape[0]
        if uniform is not None:
            uniform = dense("uniform", uniform, (B, count), torch.float64)
        rows, slots = self.rows(state, choice)
        if choice.repetition_penalty != 1:
            if seen is None or seen.shape != (B, self.core.V) or seen.dtype != torch.bool:
                raise UsageError(f"seen: expected a boolean tensor of {(B, self.core.V)}")
            for slot, row in zip(slots, seen, strict=True):
                rows.see(slot, row.nonzero()[:, 0].numpy())
        numbers = [None] * B if uniform is None else list(uniform.numpy())
        work = [Work(*row) for row in zip(slots, ids.numpy(), [count] * B, numbers, strict=True)]
        drawn = gathered(rows.run(work), count)
        if seen is not None and choice.repetition_penalty != 1:
            for row, n in enumerate(drawn.done):
                seen[row, drawn.tokens[row, :n]] = True
        return drawn, state_of(rows)

    def rows(self, state: LiquidState, choice: Choice, *, elapsed: float = 1.0) -> tuple[Rows, list[int]]:
        """A row for each sequence of a state, and their slots, 0 to B - 1."""
        neurons, columns = stacked(state)
        rows = Rows(self.core, neurons.shape[1])
        slots = [rows.join(choice, neurons[:, b], columns[:, b], elapsed=elapsed) for b in range(rows.capacity)]
        return rows, slots

    def _before(self, ids: Tensor, state: LiquidState | None) -> LiquidState:
        if ids.ndim != 2 or 0 in ids.shape or ids.dtype != torch.int64:
            raise UsageError(f"ids: expected (B, T) torch.int64 with B, T >= 1, got {tuple(ids.shape)} {ids.dtype}")
        if state is None:
            state = self.initial_state(ids.shape[0])
        self.require(state, ids.shape[0])
        return state

    def require(self, state: LiquidState, batch_size: int) -> None:
        """Reject the state of another network, or of another number of sequences.

        Raises:
            UsageError: The message names expected and got.
        """
        B, c = batch_size, self.core
        state.require(c.L, (B, c.N), (B, c.K - 1, c.D))


def gathered(written: Sequence[Written], count: int) -> Drawn:
    """The tokens of some rows, each of which was to draw `count`, side by side."""
    tokens = torch.full((len(written), count), -1)
    for row, one in enumerate(written):
        tokens[row, : len(one.tokens)] = torch.from_numpy(one.tokens)
    broken = next((row for row, one in enumerate(written) if one.end == "broken"), None)
    return Drawn(tokens, [len(one.tokens) for one in written], broken)


def state_of(rows: Rows) -> LiquidState:
    """The state of all slots."""
    return LiquidState(rows.neurons.unbind(), rows.columns.unbind())


def stacked(state: LiquidState) -> tuple[Tensor, Tensor]:
    """Neurons (L, B, N) and columns (L, B, K - 1, D), as the decoder takes them."""
    return torch.stack(state.neurons).detach(), torch.stack(state.conv_state).detach()


@torch.no_grad()
def weights_of(model: LiquidNetwork) -> Weights:
    """The parameters of a network of liquid blocks, as it computes with them."""
    blocks, epsilons = [], []
    for layer in model.layers:
        assert isinstance(layer, LiquidBlock)
        blocks.append(BlockWeights(*(weight.detach() for weight in layer.weights())))
        epsilons.append(layer.epsilon())
    assert isinstance(model.norm, nn.RMSNorm)
    assert isinstance(model.lm_head, FullHead)
    head, embedding, norm = model.lm_head.projection, model.embed_tokens.weight.detach(), model.norm.weight.detach()
    epsilons.append(_epsilon(model.norm))
    return Weights(blocks, embedding, norm, head.weight.detach(), head.bias.detach(), epsilons)


def _epsilon(norm: nn.RMSNorm) -> float:
    return torch.finfo(torch.float32).eps if norm.eps is None else float(norm.eps)
