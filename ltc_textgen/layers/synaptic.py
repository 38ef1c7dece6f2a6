"""Synaptic coupling: every pair of neurons has a synapse with a sigmoid of its own.

    C_i dx_i/dt = g_leak,i (x_leak,i - x_i) + sum_j w_ji s_ji(x_j) (E_ji - x_i) + sum_d w_di s_di(u_d) (E_di - x_i)
    s_ji(x_j) = sigmoid(sigma_ji (x_j - mu_ji))

A wiring says which synapses exist (see `wirings`); matrices are indexed [source, target]. The inputs' synapses do not
depend on the state: their sums are the drive. This is the cell of the authors' code; `ncps` holds its weights to our
equations.

Source:
    Hasani et al. 2021, arXiv:2006.04439; Lechner et al. 2020, Nature Machine Intelligence 2, 642-652.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ltc_textgen.config import ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import scans as fused
from ltc_textgen.kernels.dispatch import choose
from ltc_textgen.layers.base import MembraneCell, precise, solver_settings
from ltc_textgen.layers.wirings import Wiring, build_wiring, fully_connected
from ltc_textgen.shapes import Bool, Float, Int, Tensor
from ltc_textgen.solvers import Membrane, integrate

CHUNK = 2**21
"""Sigmoids held at once by `synaptic_sums`, 8 MB in float32."""

KEPT = 2**14
"""Sums over at most so many sigmoids keep them for the backward pass; larger ones compute them again."""

REVERSAL = 4.0
"""|E| at the start. The authors' 1 keeps states close together where many synapses average out: a character model of
48 neurons was at 2.56 nats after 200 steps, and at 2.37 with this value and `FANIN`."""

FANIN = 16
"""Synapses onto a neuron up to which w starts as in the authors' code; beyond, their sum stays what it is there."""


class Synapses(NamedTuple):
    """The synapses from P sources onto N neurons, as a kernel takes them."""

    w: Float[Tensor, "P N"]
    """Conductance of the open synapse, >= 0; zero outside the mask."""
    sigma: Float[Tensor, "P N"]
    """Slope of the sigmoid."""
    mu: Float[Tensor, "P N"]
    """Value of the source at which the synapse is half open."""
    reversal: Float[Tensor, "P N"]
    """E, the value towards which the open synapse pulls."""
    mask: Bool[Tensor, "P N"]
    """Which synapses exist."""


class Leak(NamedTuple):
    """What a neuron does without synapses."""

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
        """Start afresh: E = `REVERSAL` times the polarity, w times `scale`, the rest as in the authors' code."""
        weight = self.raw_weight.uniform_(0.001, 1.0) * torch.from_numpy(scale).to(self.raw_weight)
        self.raw_weight.copy_(inverse_softplus(weight))
        self.sigma.uniform_(3.0, 8.0)
        self.mu.uniform_(0.3, 0.8)
        self.reversal.copy_(REVERSAL * torch.from_numpy(self.polarity))

    @property
    def synapses(self) -> Synapses:
        """What they are at present, in the precision of the states."""
        weight = F.softplus(precise(self.raw_weight)) * self.mask
        return Synapses(weight, precise(self.sigma), precise(self.mu), precise(self.reversal), self.mask)


class SynapticCell(MembraneCell):
    """Liquid layer with one sigmoid per synapse. O(N^2) sigmoids per sub-step.

    Args:
        input_size: D, features of one token.
        hidden_size: N, neurons.
        wiring: Which synapses exist, their polarity at the start, and how many neurons are outputs; fully connected
            if None.
        **solver: `steps`, `step_size`, `solver` and `adaptive`, as in `MembraneCell`.

    Raises:
        UsageError: If the wiring is of other sizes.
    """

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
    def from_settings(cls, settings: ModelConfig, input_size: int, hidden_size: int) -> "SynapticCell":
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
            if choose(mapped) == "cpu":
                return fused.synaptic_sums(mapped.flatten(0, 1), *self.sensory.synapses).unflatten(0, u.shape[:2])
            conductance, current = synaptic_sums(mapped.flatten(0, 1), self.sensory.synapses)
            return torch.cat([conductance, current], dim=-1).unflatten(0, u.shape[:2])

    def membrane(self, drive: Float[Tensor, "B two_N"]) -> Membrane:
        return synaptic_membrane(drive, self.recurrent.synapses, self.leak, self.adaptive)

    def scan(
        self, drive: Float[Tensor, "B T two_N"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        h, synapses, leak = elapsed * self.step_size, self.recurrent.synapses, self.leak
        if choose(drive) == "cpu":
            neurons = (leak.capacitance, leak.conductance, leak.conductance * leak.rest)
            return fused.synaptic_scan(drive, x, h, *synapses, *neurons, self.steps, self.solver, self.adaptive)
        return synaptic_scan(drive, x, h, synapses, leak, self.solver, self.steps, self.adaptive)

    def readout(self, states: Float[Tensor, "*B N"]) -> Float[Tensor, "*B O"]:
        """The motor neurons' states, each scaled and shifted."""
        return states[..., : self.output_size] * precise(self.output_scale) + precise(self.output_shift)


def synaptic_scan(
    drive: Float[Tensor, "B T two_N"],
    x: Float[Tensor, "B N"],
    h: Float[Tensor, "B T"],
    synapses: Synapses,
    leak: Leak,
    solver: Solver,
    steps: int,
    adaptive: bool,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """The recurrence on plain tensors.

    Args:
        drive: Conductance and current of the inputs' synapses, side by side.
        x: State before the first token.
        h: Length of a sub-step of each token, >= 0, in token time.
        synapses: Between neurons.
        leak: Of the neurons.
        solver: How a sub-step is taken.
        steps: Sub-steps per token.
        adaptive: Whether synapses change the time constants.

    Returns:
        States after each token, and the last.
    """
    states = []
    for t in range(drive.shape[1]):
        membrane = synaptic_membrane(drive[:, t], synapses, leak, adaptive)
        x = integrate(solver, membrane, x, leak.capacitance, h[:, t, None], steps)
        states.append(x)
    return torch.stack(states, dim=1), x


def synaptic_membrane(drive: Float[Tensor, "B two_N"], synapses: Synapses, leak: Leak, adaptive: bool) -> Membrane:
    """G and I of every neuron as a function of the state, for one token."""
    sensory_conductance, sensory_current = drive.chunk(2, dim=-1)
    fixed_current = sensory_current + leak.conductance * leak.rest

    def conductances(x: Tensor) -> tuple[Tensor, Tensor]:
        conductance, current = synaptic_sums(x, synapses)
        total = leak.conductance + sensory_conductance + conductance if adaptive else leak.conductance
        return total, fixed_current + current

    return conductances


def synaptic_sums(x: Float[Tensor, "M P"], synapses: Synapses) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"]]:
    """Conductance sum_j w s and current sum_j w s E onto every neuron, for M rows of source values.

    The M x P x N sigmoids exist for a few rows at a time, and when there are many the backward pass computes them
    again instead of keeping them.
    """
    *tables, _ = synapses
    if torch.compiler.is_exporting():  # the number of parts would bind the program to small batches
        return _sums(x, *tables)
    rows = max(1, CHUNK // synapses.w.numel())
    if x.shape[0] * synapses.w.numel() <= KEPT or not torch.is_grad_enabled():
        sums = [_sums(part, *tables) for part in x.split(rows)]
    else:
        sums = [checkpoint(_sums, p, *tables, use_reentrant=False, preserve_rng_state=False) for p in x.split(rows)]
    conductances, currents = zip(*sums, strict=True)
    return torch.cat(conductances), torch.cat(currents)


def _sums(x: Tensor, w: Tensor, sigma: Tensor, mu: Tensor, reversal: Tensor) -> tuple[Tensor, Tensor]:
    conductances = w * torch.sigmoid(sigma * (x[:, :, None] - mu))
    return conductances.sum(1), (conductances * reversal).sum(1)


def inverse_softplus(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The argument for which softplus gives `value` > 0."""
    return value + torch.log(-torch.expm1(-value))
