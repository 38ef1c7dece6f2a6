"""Full coupling: one synapse per neuron whose conductance depends on all inputs and all states.

    dx/dt = -[1/tau + f] x + f A,      f = sigmoid(W_in u + W_rec x + b) >= 0

The paper's cell, and the default meaning of `LiquidTimeConstantNetwork`. O(N^2) work per sub-step.

Source:
    Hasani et al. 2021, arXiv:2006.04439, Eq. 1. The paper also allows f = tanh, with which neither of its theorems
    on bounds holds; we take the sigmoid, with which both do.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ltc_textgen.kernels.dispatch import choose
from ltc_textgen.kernels.matmul import linear
from ltc_textgen.kernels.scans import CoupledNeurons, Method, full_scan
from ltc_textgen.layers.base import MembraneCell, precise, unwatched
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import Membrane

TAU_RANGE = (0.3, 10.0)
"""Leak time constants tau at the start, log-uniform, in tokens. A synapse that is half open brings tau_sys to between
0.26 and 1.7 tokens; one that an input closes lets it rise to tau."""

REVERSAL = 6.0
"""|A| at the start. With tau up to 100 and A in [-1, 1], states rest near A whatever the input says: a character model
of 256 neurons was at 2.37 nats after 500 steps, and at 2.06 with these values."""


class FullCell(MembraneCell):
    """Liquid layer with dense recurrence. Arguments as `MembraneCell`."""

    def __init__(self, input_size: int, hidden_size: int, **solver: object) -> None:
        super().__init__(input_size, hidden_size, **solver)  # type: ignore[arg-type]
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent_weight = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.log_tau = nn.Parameter(torch.empty(hidden_size))
        self.reversal = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Inputs by Xavier, recurrence orthogonal, tau log-uniform in `TAU_RANGE`, A = +-`REVERSAL`."""
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.input.bias)
        nn.init.orthogonal_(self.recurrent_weight)
        self.log_tau.uniform_(math.log(TAU_RANGE[0]), math.log(TAU_RANGE[1]))
        self.reversal.bernoulli_(0.5).mul_(2 * REVERSAL).sub_(REVERSAL)

    def project(self, u: Float[Tensor, "B T D"]) -> Float[Tensor, "B T N"]:
        if not unwatched(self.input):
            return self.input(u)
        return linear(u, self.input.weight, self.input.bias)

    @property
    def capacitance(self) -> Float[Tensor, " N"]:
        return torch.ones_like(precise(self.log_tau))

    def membrane(self, drive: Float[Tensor, "B N"]) -> Membrane:
        leak = torch.exp(-precise(self.log_tau))
        recurrent, reversal = precise(self.recurrent_weight), precise(self.reversal)

        def conductances(x: Tensor) -> tuple[Tensor, Tensor]:
            f = torch.sigmoid(drive + F.linear(x, recurrent))
            return (leak + f if self.adaptive else leak), f * reversal

        return conductances

    def scan(
        self, drive: Float[Tensor, "B T N"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        if choose(drive) != "cpu":
            return super().scan(drive, x, elapsed)
        weight, leak = precise(self.recurrent_weight), torch.exp(-precise(self.log_tau))
        neurons = CoupledNeurons(weight, precise(self.reversal), self.capacitance, leak)
        method = Method(self.steps, self.solver, self.adaptive)
        return full_scan(drive, x, elapsed * self.step_size, neurons, method)
