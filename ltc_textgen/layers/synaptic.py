"""Synaptic coupling: every pair of neurons has a synapse with a sigmoid of its own.

    C_i dx_i/dt = g_leak,i (x_leak,i - x_i) + sum_j w_ji s_ji(x_j) (E_ji - x_i) + sum_d w_di s_di(u_d) (E_di - x_i)
    s_ji(x_j) = sigmoid(sigma_ji (x_j - mu_ji))

A wiring says which synapses exist (see `wirings`); matrices are indexed [source, target]. The inputs' synapses do not
depend on the state: their sums are the drive. This is the layer of the authors' code; `ncps` loads its
weights.

Source:
    Hasani et al. 2021, arXiv:2006.04439; Lechner et al. 2020, Nature Machine Intelligence 2, 642-652.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ltc_textgen.config import Coupling, ModelConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import reference, synaptic_sums
from ltc_textgen.kernels.dispatch import choose, record
from ltc_textgen.kernels.reference import Synapses, SynapticParameters, synaptic_membrane
from ltc_textgen.kernels.scans import synaptic_scan
from ltc_textgen.layers.base import MembraneLayer, precise, solver_settings
from ltc_textgen.layers.wirings import Wiring, build_wiring, fully_connected
from ltc_textgen.shapes import Bool, Float, Int, Tensor
from ltc_textgen.solvers import Membrane

REVERSAL = 4.0
"""|E| at the start. The authors' 1 keeps states close together where many synapses average out: a character model of
48 neurons was at 2.56 nats after 200 steps, and at 2.37 with this value and `FANIN`."""

FANIN = 16
"""Synapses onto a neuron up to which w starts as in the authors' code; beyond, their sum stays what it is there."""


class Leak(NamedTuple):
    """The membrane of a neuron without synapses."""

    capacitance: Float[Tensor, " N"]
    """C > 0."""
    conductance: Float[Tensor, " N"]
    """g_leak >= 0."""
    rest: Float[Tensor, " N"]
    """x_leak."""


class SynapseGroup(nn.Module):
    """The learned synapses from P sources onto N neurons.

    Args:
        polarity: +1 or -1 where there is a synapse, 0 where there is none.
    """

    mask: Bool[Tensor, "P N"]

    def __init__(self, polarity: Int[np.ndarray, "P N"]) -> None:
        super().__init__()
        self.polarity = polarity
        self.register_buffer("mask", torch.from_numpy(polarity != 0))
        self.raw_weight = nn.Parameter(torch.empty(polarity.shape))
        self.sigma = nn.Parameter(torch.empty(polarity.shape))
        self.mu = nn.Parameter(torch.empty(polarity.shape))
        self.reversal = nn.Parameter(torch.empty(polarity.shape))

    @torch.no_grad()
    def draw(self, scale: Float[np.ndarray, " N"]) -> None:
        """Initialise: E = `REVERSAL` times the polarity, w times `scale`, the rest as in the authors' code."""
        weight = self.raw_weight.uniform_(0.001, 1.0) * torch.from_numpy(scale).to(self.raw_weight)
        self.raw_weight.copy_(inverse_softplus(weight))
        self.sigma.uniform_(3.0, 8.0)
        self.mu.uniform_(0.3, 0.8)
        self.reversal.copy_(REVERSAL * torch.from_numpy(self.polarity))

    @property
    def synapses(self) -> Synapses:
        """Their parameters in the precision of the states."""
        weight = F.softplus(precise(self.raw_weight)) * self.mask
        return Synapses(weight, precise(self.sigma), precise(self.mu), precise(self.reversal), self.mask)


@record
class SynapticLTC(MembraneLayer):
    """Liquid layer with one sigmoid per synapse. O(N^2) sigmoids per sub-step.

    Args:
        input_size: D, features of one token.
        hidden_size: N, neurons.
        wiring: Which synapses exist, their polarity at the start, and how many neurons are outputs; fully connected
            if None.
        **solver: `steps`, `step_size`, `solver` and `adaptive`, as in `MembraneLayer`.

    Raises:
        UsageError: If the wiring is of other sizes.
    """

    coupling = Coupling.synaptic

    def __init__(self, input_size: int, hidden_size: int, *, wiring: Wiring | None = None, **solver: Any) -> None:
        super().__init__(input_size, hidden_size, **solver)
        self.wiring = fully_connected(hidden_size, input_size) if wiring is None else wiring
        sizes = (self.wiring.input_size, self.wiring.units)
        if sizes != (input_size, hidden_size):
            raise UsageError(f"wiring: expected {input_size} inputs and {hidden_size} neurons, got {sizes}")
        self.recurrent = SynapseGroup(self.wiring.adjacency)
        self.sensory = SynapseGroup(self.wiring.sensory)
        self.raw_capacitance = nn.Parameter(torch.empty(hidden_size))
        self.raw_leak = nn.Parameter(torch.empty(hidden_size))
        self.rest = nn.Parameter(torch.empty(hidden_size))
        self.input_scale = nn.Parameter(torch.empty(input_size))
        self.input_shift = nn.Parameter(torch.empty(input_size))
        self.output_scale = nn.Parameter(torch.empty(self.output_size))
        self.output_shift = nn.Parameter(torch.empty(self.output_size))
        self.reset_parameters()

    @classmethod
    def from_settings(cls, settings: ModelConfig, input_size: int, hidden_size: int) -> "SynapticLTC":
        wiring = build_wiring(settings.wiring, input_size, hidden_size)
        return cls(input_size, hidden_size, wiring=wiring, **solver_settings(settings))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The ranges of the authors' code, but wider E, and w smaller where many synapses meet.

        w is uniform in [0.001, 1] for neurons with up to `FANIN` synapses, and scaled by `FANIN` / synapses beyond, so
        that a wide layer does not start with time constants of a hundredth of a token.
        """
        synapses = np.count_nonzero(self.wiring.adjacency, 0) + np.count_nonzero(self.wiring.sensory, 0)
        scale = FANIN / synapses.clip(min=FANIN)
        self.recurrent.draw(scale)
        self.sensory.draw(scale)
        self.raw_capacitance.copy_(inverse_softplus(self.raw_capacitance.uniform_(0.4, 0.6)))
        self.raw_leak.copy_(inverse_softplus(self.raw_leak.uniform_(0.001, 1.0)))
        self.rest.uniform_(-0.2, 0.2)
        for one in (self.input_scale, self.output_scale):
            nn.init.ones_(one)
        for zero in (self.input_shift, self.output_shift):
            nn.init.zeros_(zero)

    @property
    def output_size(self) -> int:
        return self.wiring.output_size

    @property
    def capacitance(self) -> Float[Tensor, " N"]:
        return F.softplus(precise(self.raw_capacitance))

    @property
    def leak(self) -> Leak:
        """C, g_leak and x_leak, in the precision of the states."""
        return Leak(self.capacitance, F.softplus(precise(self.raw_leak)), precise(self.rest))

    def project(self, u: Float[Tensor, "B T D"]) -> Float[Tensor, "B T two_N"]:
        """Conductance and current that each token brings, sum_d w s and sum_d w s E, side by side."""
        with torch.autocast(u.device.type, enabled=False):
            mapped = precise(u) * precise(self.input_scale) + precise(self.input_shift)
            rows, synapses = mapped.flatten(0, 1), self.sensory.synapses
            if choose(Coupling.synaptic, mapped) == "cpu":
                return synaptic_sums.synaptic_sums(rows, synapses).unflatten(0, u.shape[:2])
            return torch.cat(reference.synaptic_sums(rows, synapses), dim=-1).unflatten(0, u.shape[:2])

    def physics(self) -> SynapticParameters:
        """The parameters as the recurrence uses them."""
        capacitance, conductance, rest = self.leak
        return SynapticParameters(*self.recurrent.synapses, capacitance, conductance, conductance * rest)

    def membrane(self, drive: Float[Tensor, "B two_N"]) -> Membrane:
        return synaptic_membrane(drive, self.physics(), self.adaptive)

    def scan(
        self, drive: Float[Tensor, "B T two_N"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        if self.path(drive, SynapticLTC) != "cpu":
            return super().scan(drive, x, elapsed)
        return synaptic_scan(drive, x, elapsed * self.step_size, self.physics(), self.method)

    def time_constants(self, u: Float[Tensor, "B T D"], states: Float[Tensor, "B T N"]) -> Float[Tensor, "B T N"]:
        """As `MembraneLayer.time_constants`, a token at a time: a token has N^2 conductances."""
        each = [super(SynapticLTC, self).time_constants(u[:, [t]], states[:, [t]]) for t in range(u.shape[1])]
        return torch.cat(each, dim=1)

    def readout(self, states: Float[Tensor, "*B N"]) -> Float[Tensor, "*B O"]:
        """The motor neurons' states, each scaled and shifted."""
        return states[..., : self.output_size] * precise(self.output_scale) + precise(self.output_shift)


def inverse_softplus(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The argument for which softplus gives `value` > 0."""
    return value + torch.log(-torch.expm1(-value))
