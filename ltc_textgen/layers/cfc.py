"""The closed-form layer: what a liquid neuron's state is after a time t, in closed form instead of integrated.

    z  = backbone([u, x])
    x' = (1 - s) tanh(f1(z)) + s tanh(f2(z)),   s = sigmoid(a(z) t + b(z))          default:  |x'| < 1
    x' = tanh(f1(z)) + s tanh(f2(z))                                                no_gate:  |x'| < 2
    x' = A - A exp(-t (|w_tau| + |f1(z)|)) f1(z)                                    pure

One evaluation takes a token's whole horizon t = steps * step_size * elapsed; there is no sub-step and no solver. Two
half steps are not one whole step, and t = 0 is not the identity: it is what the network makes of a token at once.

With a wiring, each of its layers is such a closed form without a backbone, whose inputs are the layer before and
itself; f1 and f2 have the wiring's synapses, a and b all inputs.

Source:
    Hasani et al. 2022, Nature Machine Intelligence 4, 992-1003 (arXiv:2106.13898), Eq. 10 and the authors' code.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ltc_textgen.config import ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.dispatch import changed, observed
from ltc_textgen.kernels.matmul import linear
from ltc_textgen.layers.base import LiquidLayer, precise
from ltc_textgen.layers.wirings import Wiring, build_wiring
from ltc_textgen.shapes import Bool, Float, Tensor

Mode = Literal["default", "pure", "no_gate"]
Activation = Literal["lecun_tanh", "tanh", "relu", "silu", "gelu"]

TAU_RANGE = (1.0, 100.0)
"""1 / |w_tau| at the start (pure), log-uniform, in tokens."""


def lecun_tanh(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Tanh scaled so that its output keeps the variance of its input (LeCun et al. 1998, Efficient BackProp)."""
    return 1.7159 * torch.tanh(0.666 * z)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lecun_tanh": lecun_tanh,
    "tanh": torch.tanh,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


class ClosedForm(nn.Module):
    """The closed form of one layer of neurons, a step at a time.

    Args:
        input_size: Features that enter.
        hidden_size: Neurons.
        mode: Which closed form.
        backbone_units: Width of the layers before the heads.
        backbone_layers: How many there are; with 0 the heads see the input and the state themselves.
        activation: Of the backbone.
        mask: Which inputs reach f1 and f2 of which neuron, (input_size, hidden_size); only without a backbone.
    """

    mask: Bool[Tensor, "H D"] | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        mode: Mode,
        backbone_units: int = 0,
        backbone_layers: int = 0,
        activation: Activation = "lecun_tanh",
        mask: Bool[np.ndarray, "D N"] | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.mode, self.activation = hidden_size, mode, ACTIVATIONS[activation]
        outputs = hidden_size * (1 if mode == "pure" else 4)  # f1, f2, a, b
        first = backbone_units if backbone_layers else outputs
        self.input = nn.Linear(input_size, first)
        self.recurrent_weight = nn.Parameter(torch.empty(first, hidden_size))
        self.backbone = nn.ModuleList(nn.Linear(first, first) for _ in range(backbone_layers - 1))
        self.heads = nn.Linear(first, outputs) if backbone_layers else None
        if mode == "pure":
            self.w_tau = nn.Parameter(torch.empty(hidden_size))
            self.A = nn.Parameter(torch.empty(hidden_size))
        if mask is not None:
            gates = np.ones((outputs, input_size), dtype=bool)
            gates[: 2 * hidden_size] = np.concatenate([mask, mask], axis=1).T[:outputs]
            self.register_buffer("mask", torch.from_numpy(gates))
        else:
            self.mask = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Each head by Xavier over inputs and state together, biases zero; A = 1, tau log-uniform in `TAU_RANGE`."""
        joint = torch.cat([self.input.weight, self.recurrent_weight], dim=1)
        heads = joint if self.heads is None else self.heads.weight
        nn.init.xavier_uniform_(joint)
        for head in heads.split(self.hidden_size):
            nn.init.xavier_uniform_(head)
        self.input.weight.copy_(joint[:, : self.input.in_features])
        self.recurrent_weight.copy_(joint[:, self.input.in_features :])
        for layer in self._linears():
            nn.init.zeros_(layer.bias)
            if layer is not self.input and layer is not self.heads:
                nn.init.xavier_uniform_(layer.weight)
        if self.mode == "pure":
            # The authors start w_tau at 0, where |w_tau| has no gradient: it would never move.
            self.w_tau.uniform_(math.log(TAU_RANGE[0]), math.log(TAU_RANGE[1])).neg_().exp_()
            nn.init.ones_(self.A)

    def project(self, u: Float[Tensor, "*B D"]) -> Float[Tensor, "*B H"]:
        """What the inputs add to the first layer: the part that does not depend on the state."""
        seen = observed(self.input, nn.Linear)
        if self.mask is None:
            return self.input(u) if seen else linear(u, self.input.weight.to(u.dtype), self.input.bias.to(u.dtype))
        if changed(self.input, nn.Linear, "forward") or "weight" not in self.input._parameters:
            raise UsageError("input: an adapter would ignore the mask of a wiring; exclude this module from adaptation")
        weight, bias = (self.input.weight * self.mask).to(u.dtype), self.input.bias.to(u.dtype)
        return functional_call(self.input, {"weight": weight, "bias": bias}, (u,)) if seen else linear(u, weight, bias)

    def step(
        self, drive: Float[Tensor, "B H"], x: Float[Tensor, "B N"], t: Float[Tensor, "B 1"]
    ) -> Float[Tensor, "B N"]:
        """The state at time t after x."""
        outputs = self._outputs(drive, x)
        if self.mode == "pure":
            limit = precise(self.A)
            return limit - limit * torch.exp(-t * (precise(self.w_tau).abs() + outputs.abs())) * outputs
        f1, f2, a, b = outputs.chunk(4, dim=-1)
        s = torch.sigmoid(a * t + b)
        if self.mode == "no_gate":
            return torch.tanh(f1) + s * torch.tanh(f2)
        return torch.lerp(torch.tanh(f1), torch.tanh(f2), s)

    def time_constants(self, drive: Float[Tensor, "*B H"], x: Float[Tensor, "*B N"]) -> Float[Tensor, "*B N"]:
        """Time in which the exponential falls, or the sigmoid's argument moves, by one."""
        outputs = self._outputs(drive, x)
        if self.mode == "pure":
            return 1 / (precise(self.w_tau).abs() + outputs.abs())
        return 1 / outputs.chunk(4, dim=-1)[2].abs()

    def _outputs(self, drive: Tensor, x: Tensor) -> Tensor:
        z = drive + F.linear(x, precise(self.recurrent_weight))
        if self.heads is None:
            return z
        z = self.activation(z)
        for layer in self.backbone:
            z = self.activation(_precise_linear(z, layer))
        return _precise_linear(z, self.heads)

    def _linears(self) -> list[nn.Linear]:
        return [module for module in self.modules() if isinstance(module, nn.Linear)]


class CfC(LiquidLayer):
    """Closed-form layer.

    Args:
        input_size: D, features of one token.
        hidden_size: N, neurons.
        mode: Which closed form.
        backbone_units: Width of the layers before the heads.
        backbone_layers: How many there are, possibly none.
        activation: Of the backbone.
        wiring: One closed form per layer of a wiring, in place of a single one with a backbone.
        **time: `steps` and `step_size`, as in `LiquidLayer`; only their product counts.

    Raises:
        UsageError: If the wiring is of other sizes.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        mode: Mode = "default",
        backbone_units: int = 128,
        backbone_layers: int = 1,
        activation: Activation = "lecun_tanh",
        wiring: Wiring | None = None,
        **time: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, **time)
        self.wiring = wiring
        self.neurons: tuple[range, ...] = (range(hidden_size),) if wiring is None else wiring.layers
        if wiring is None:
            form = ClosedForm(input_size, hidden_size, mode, backbone_units, backbone_layers, activation)
            self.layers = nn.ModuleList([form])
            return
        sizes = (wiring.input_size, wiring.units)
        if sizes != (input_size, hidden_size):
            raise UsageError(f"wiring: expected {input_size} inputs and {hidden_size} neurons, got {sizes}")
        self.layers = nn.ModuleList()
        synapses = wiring.sensory
        for layer in wiring.layers:
            mask = synapses[:, layer] != 0
            self.layers.append(ClosedForm(len(mask), len(layer), mode, mask=mask))
            synapses = wiring.adjacency[layer]

    @classmethod
    def from_settings(cls, settings: ModelConfig, input_size: int, hidden_size: int) -> "CfC":
        """As in `LiquidLayer`; rejects a solver, which a closed form does not have, and frozen time constants.

        Raises:
            UsageError: If the settings name a solver other than the default, or adaptive = False.
        """
        if settings.solver != Solver.semi_implicit:
            raise UsageError(f"coupling = cfc is a closed form and takes no solver, got solver = {settings.solver}")
        if not settings.adaptive:
            raise UsageError("coupling = cfc is the closed form of liquid time constants: it has no adaptive = False")
        wired = settings.wiring is not None
        return cls(
            input_size,
            hidden_size,
            mode=settings.cfc_mode,
            backbone_units=settings.cfc_backbone_units,
            backbone_layers=settings.cfc_backbone_layers,
            wiring=build_wiring(settings.wiring, input_size, hidden_size) if wired else None,
            steps=settings.steps,
            step_size=settings.step_size,
        )

    @property
    def forms(self) -> list[ClosedForm]:
        """The closed forms that a token passes, in order."""
        return [layer for layer in self.layers if isinstance(layer, ClosedForm)]

    @property
    def output_size(self) -> int:
        return self.hidden_size if self.wiring is None else self.wiring.output_size

    def project(self, u: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        return self.forms[0].project(u)

    def step(
        self, drive: Float[Tensor, "B H"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B 1"]
    ) -> Float[Tensor, "B N"]:
        """The state a horizon later, in one evaluation. An `elapsed` of zero is not the identity."""
        t = elapsed * (self.steps * self.step_size)
        after: list[Tensor] = []
        for form, layer in zip(self.forms, self.neurons, strict=True):
            if after:
                drive = form.project(after[-1])
            after.append(form.step(drive, x[:, layer.start : layer.stop], t))
        return torch.cat(after[::-1], dim=1)  # a token passes inter neurons first; ids count from the motor neurons

    def time_constants(self, u: Float[Tensor, "B T D"], states: Float[Tensor, "B T N"]) -> Float[Tensor, "B T N"]:
        """Time in which a neuron's exponential falls, or its sigmoid's argument moves, by one, at the given states."""
        drive = self.project(u)
        with torch.autocast(u.device.type, enabled=False):
            drive, constants, before = drive.to(states.dtype), list[Tensor](), None
            for form, layer in zip(self.forms, self.neurons, strict=True):
                x = states[..., layer.start : layer.stop]
                drive = drive if before is None else form.project(before)
                constants.append(form.time_constants(drive, x))
                before = x
            return torch.cat(constants[::-1], dim=-1)

    def readout(self, states: Float[Tensor, "*B N"]) -> Float[Tensor, "*B O"]:
        """The motor neurons' states."""
        return states[..., : self.output_size]


def _precise_linear(z: Tensor, layer: nn.Module) -> Tensor:
    """A linear layer in the precision of the states, whatever that of its weights."""
    if type(layer) is not nn.Linear or layer.weight.dtype == z.dtype:
        return layer(z)
    return functional_call(layer, {name: precise(weight) for name, weight in layer.named_parameters()}, (z,))
