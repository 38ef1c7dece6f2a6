"""The blocks that a network stacks: a bare liquid layer, or a residual block around one.

    liquid block:  m = convolution(RMSNorm(u));   u + linear( liquid(m) * SiLU(linear(m)) )

Both take and return the whole of their state. Sequences are padded on the right only: `lengths` says how many tokens
of each are real (`network` sorts padding to the right).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ltc_textgen import layers
from ltc_textgen.config import ModelConfig
from ltc_textgen.kernels.dispatch import (
    Access,
    access,
    changed,
    fits_directly,
    is_standard,
    observed,
    product_dtype,
    record,
)
from ltc_textgen.kernels.liquid_block import BlockMethod, BlockWeights, fused_block
from ltc_textgen.kernels.matmul import Linear
from ltc_textgen.layers.base import precise
from ltc_textgen.layers.diagonal import DiagonalLTC
from ltc_textgen.shapes import Bool, Float, Int, Tensor

LayerState = tuple[Tensor, Tensor | None]
"""States of the neurons (B, N), and of the convolution (B, conv_width - 1, D) or None."""

Trajectory = Callable[[layers.LiquidLayer, Tensor, Tensor, Tensor], Tensor]
"""How a layer's neurons move: from the layer, its input (B, T, D), the state before the first token (B, N) and the
elapsed times (B, T) to the state after each token (B, T, N). An intervention replaces the layer's own."""


class Observation(NamedTuple):
    """What a layer does with a sequence, without dropout."""

    output: Float[Tensor, "B T D"]
    states: Float[Tensor, "B T N"]
    """State of every neuron after each token."""
    tau: Float[Tensor, "B T N"]
    """Time constant of every neuron at that state, in token time."""
    after: LayerState


def own_trajectory(cell: layers.LiquidLayer, u: Tensor, x: Tensor, elapsed: Tensor) -> Tensor:
    """The states that a layer itself computes."""
    return cell.trajectory(u, x, elapsed, checked=True)[0]


class PlainLayer(nn.Module):
    """A liquid layer and dropout on what leaves it; nothing else."""

    def __init__(self, settings: ModelConfig) -> None:
        super().__init__()
        self.cell = layers.build_layer(settings, settings.hidden_size, settings.hidden_size)
        self.start = LearnedInitialState(self.cell.hidden_size) if settings.learned_initial_state else None
        self.dropout = LockedDropout(settings.dropout)
        # A wiring may let fewer motor neurons out than the next layer expects.
        narrow = self.cell.output_size != settings.hidden_size
        self.widen = Linear(self.cell.output_size, settings.hidden_size) if narrow else nn.Identity()

    def initial_state(self, batch_size: int) -> LayerState:
        """The zero state, or the learned one."""
        return self.start(batch_size) if self.start else (self.cell.initial_state(batch_size), None)

    def forward(
        self,
        u: Float[Tensor, "B T D"],
        state: LayerState,
        elapsed: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None,
        lengths: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B T D"], LayerState]:
        """Outputs for every token, and the state after the last real one."""
        y, neurons = self.cell(u, state[0], elapsed, mask, checked=True)
        return self.dropout(self.widen(y.to(u.dtype))), (neurons, None)

    def observe(
        self,
        u: Float[Tensor, "B T D"],
        state: LayerState,
        elapsed: Float[Tensor, "B T"],
        trajectory: Trajectory = own_trajectory,
    ) -> Observation:
        """Outputs, states and time constants at every token; `trajectory` may move the neurons in another way."""
        states = trajectory(self.cell, u, state[0], elapsed)
        output = self.widen(self.cell.readout(states).to(u.dtype))
        return Observation(output, states, self.cell.time_constants(u, states), (states[:, -1], None))


@record
class LiquidBlock(nn.Module):
    """A residual block around a liquid layer of `settings.neurons` neurons; see the top of this file."""

    def __init__(self, settings: ModelConfig) -> None:
        super().__init__()
        width = settings.hidden_size
        self.norm = nn.RMSNorm(width)
        self.conv = CausalConvolution(width, settings.conv_width)
        self.cell = layers.build_layer(settings, width, settings.neurons)
        self.gate = Linear(width, self.cell.output_size)
        self.out = Linear(self.cell.output_size, width, bias=False)
        self.start = None
        if settings.learned_initial_state:
            self.start = LearnedInitialState(self.cell.hidden_size, (settings.conv_width - 1, width))
        self.dropout = LockedDropout(settings.dropout)

    def initial_state(self, batch_size: int) -> LayerState:
        """The zero state, or the learned one."""
        if self.start:
            return self.start(batch_size)
        return self.cell.initial_state(batch_size), self.conv.initial_state(batch_size)

    def forward(
        self,
        u: Float[Tensor, "B T D"],
        state: LayerState,
        elapsed: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None,
        lengths: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B T D"], LayerState]:
        """Outputs for every token, and the state after the last real one."""
        assert state[1] is not None, "a liquid block has a convolution with a state"
        weights = self._kernel_weights(u) if mask is None and lengths is None else None
        if weights is not None:
            return self._fused(u, state[0], state[1], elapsed, weights)
        mixed, conv_state = self.conv(self.norm(u), state[1], lengths)
        y, neurons = self.cell(mixed, state[0], elapsed, mask, checked=True)
        return u + self.dropout(self._gated_output(y, mixed)), (neurons, conv_state)

    def observe(
        self,
        u: Float[Tensor, "B T D"],
        state: LayerState,
        elapsed: Float[Tensor, "B T"],
        trajectory: Trajectory = own_trajectory,
    ) -> Observation:
        """Outputs, states and time constants at every token; `trajectory` may move the neurons in another way."""
        assert state[1] is not None, "a liquid block has a convolution with a state"
        mixed, conv_state = self.conv(self.norm(u), state[1], None)
        states = trajectory(self.cell, mixed, state[0], elapsed)
        output = u + self._gated_output(self.cell.readout(states), mixed)
        return Observation(output, states, self.cell.time_constants(mixed, states), (states[:, -1], conv_state))

    def _is_changed(self) -> bool:
        """Whether the block may compute something else than its kernel, or someone observes its parts."""
        cell = self.cell
        if (
            not isinstance(cell, DiagonalLTC)
            or changed(self, LiquidBlock, "_gated_output")
            or observed(cell, DiagonalLTC)
        ):
            return True
        parts = (self.norm, self.conv, cell.input, self.gate, self.out, self.dropout)
        kinds = (nn.RMSNorm, CausalConvolution, nn.Linear, Linear, Linear, LockedDropout)
        changes = (observed(part, kind) for part, kind in zip(parts, kinds, strict=True))
        return any(changes) or self.out.bias is not None or not is_standard(cell.solver)

    def _kernel_weights(self, u: Tensor) -> BlockWeights | None:
        """What the kernel of a whole block takes; None where it may not run."""
        if access(u) != Access.direct or self._is_changed():
            return None
        weights = self.weights()
        fits = fits_directly(u, *weights) and product_dtype() in (torch.float32, torch.bfloat16)
        return weights if fits else None

    def weights(self) -> BlockWeights:
        """The parameters as the kernels of whole blocks take them, which know the diagonal coupling alone."""
        cell, norm, conv, gate = self.cell, self.norm, self.conv, self.gate
        assert isinstance(cell, DiagonalLTC), "see _is_changed"
        mixing, drive = (norm.weight, conv.weight, conv.bias), (cell.input.weight, cell.input.bias)
        return BlockWeights(*mixing, *drive, *cell.physics(), gate.weight, gate.bias, self.out.weight)

    def epsilon(self) -> float:
        """The epsilon of the norm."""
        return torch.finfo(self.norm.weight.dtype).eps if self.norm.eps is None else self.norm.eps

    def _fused(
        self,
        u: Float[Tensor, "B T D"],
        neurons: Tensor,
        conv_state: Tensor,
        elapsed: Float[Tensor, "B T"],
        w: BlockWeights,
    ) -> tuple[Float[Tensor, "B T D"], LayerState]:
        cell = self.cell
        assert isinstance(cell, DiagonalLTC), "see _is_changed"
        method = BlockMethod(self.epsilon(), cell.method, product_dtype() == torch.bfloat16)
        keep = self.dropout.mask(u) if self.dropout.training and self.dropout.p else None
        dt = elapsed.to(u.dtype) * cell.step_size
        out, after, last = fused_block(u, conv_state.to(u.dtype), neurons.to(u.dtype), dt, keep, w, method)
        return out, (last, after)

    def _gated_output(self, y: Float[Tensor, "B T O"], mixed: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.out(y.to(mixed.dtype) * F.silu(self.gate(mixed)))


@record
class LockedDropout(nn.Module):
    """Dropout of whole features: one mask per sequence, the same at all of its tokens (of one window).

    A recurrent network could average independent masks out over time. Source: Gal and Ghahramani 2016,
    arXiv:1512.05287.

    Args:
        p: Probability of dropping a feature in training; the others are scaled up by 1 / (1 - p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The features that are kept, scaled."""
        return x * self.mask(x) if self.training and self.p else x

    def mask(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B 1 D"]:
        """What to multiply features with: 0 or 1 / (1 - p)."""
        return F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p)


@record
class LearnedInitialState(nn.Module):
    """The state before the first token, as parameters, which start at zero.

    Args:
        neurons: N.
        conv_state: Shape of the convolution's state of one sequence; None without one.
    """

    def __init__(self, neurons: int, conv_state: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.neurons = nn.Parameter(torch.empty(neurons))
        self.conv_state = nn.Parameter(torch.empty(conv_state)) if conv_state else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the learned initial state to zero."""
        for parameter in self.parameters():
            parameter.zero_()

    def forward(self, batch_size: int) -> LayerState:
        """The same state for every sequence."""
        conv_state = None if self.conv_state is None else self.conv_state.expand(batch_size, -1, -1)
        return precise(self.neurons).expand(batch_size, -1), conv_state


@record
class CausalConvolution(nn.Module):
    """Depthwise convolution over a token and the `kernel_width` - 1 before it, which are its state between chunks."""

    def __init__(self, width: int, kernel_width: int) -> None:
        super().__init__()
        self.width, self.kernel_width = width, kernel_width
        self.weight = nn.Parameter(torch.empty(width, kernel_width))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights uniform in +-kernel_width**-0.5, bias zero."""
        bound = self.kernel_width**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def initial_state(self, batch_size: int) -> Float[Tensor, "B conv_state D"]:
        """Zeros in place of the tokens before the first."""
        return self.weight.new_zeros(batch_size, self.kernel_width - 1, self.width)

    def forward(
        self, u: Float[Tensor, "B T D"], conv_state: Float[Tensor, "B conv_state D"], lengths: Int[Tensor, " B"] | None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B conv_state D"]]:
        """Convolved inputs, and the inputs that the next token needs."""
        extended = torch.cat([conv_state.to(u.dtype), u], dim=1)
        tokens = u.shape[1]
        weight = self.weight.to(u.dtype)
        y = torch.addcmul(self.bias.to(u.dtype), extended[:, :tokens], weight[:, 0])
        for k in range(1, self.kernel_width):
            y = torch.addcmul(y, extended[:, k : k + tokens], weight[:, k])
        if lengths is None:
            return y, extended[:, tokens:]
        ends = lengths[:, None] + torch.arange(self.kernel_width - 1, device=u.device)
        return y, extended.gather(1, ends[:, :, None].expand(-1, -1, self.width))


def build_layer(settings: ModelConfig) -> PlainLayer | LiquidBlock:
    """One layer of the kind that `settings.block` names."""
    return PlainLayer(settings) if settings.block == "plain" else LiquidBlock(settings)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and at the end on again in just those modules where it was on."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
