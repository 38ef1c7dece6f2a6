"""Full coupling: one synapse per neuron whose conductance depends on all inputs and all states.

    dx/dt = -[1/tau + f] x + f A,      f = sigmoid(W_in u + W_rec x + b) >= 0

The paper's layer, and the default meaning of `LiquidTimeConstantNetwork`. O(N^2) work per sub-step.

Source:
    Hasani et al. 2021, arXiv:2006.04439, Eq. 1. The paper also allows f = tanh, with which neither of its theorems
    on bounds holds; we take the sigmoid, with which both do.
"""

import math
from typing import Any

import torch
from torch import nn

from ltc_textgen.config import Coupling
from ltc_textgen.kernels.dispatch import observed, record
from ltc_textgen.kernels.matmul import linear
from ltc_textgen.kernels.reference import FullParameters, full_membrane
from ltc_textgen.kernels.scans import full_scan
from ltc_textgen.layers.base import MembraneLayer, precise
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import Membrane

TAU_RANGE = (0.3, 10.0)
"""Leak time constants tau at the start, log-uniform, in tokens. A synapse that is half open brings tau_sys to between
0.26 and 1.7 tokens; one that an input closes lets it rise to tau."""

REVERSAL = 6.0
"""|A| at the start. With tau up to 100 and A in [-1, 1], states stay near A whatever the input is: a character model
of 256 neurons was at 2.37 nats after 500 steps, and at 2.06 with these values."""


@record
class FullLTC(MembraneLayer):
    """Liquid layer with dense recurrence. Arguments as `MembraneLayer`."""

    coupling = Coupling.full

    def __init__(self, input_size: int, hidden_size: int, **solver: Any) -> None:
        super().__init__(input_size, hidden_size, **solver)
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
        if observed(self.input, nn.Linear):
            return self.input(u)
        return linear(u, self.input.weight, self.input.bias)

    @property
    def capacitance(self) -> Float[Tensor, " N"]:
        return torch.ones_like(precise(self.log_tau))

    def physics(self) -> FullParameters:
        """The parameters as the recurrence uses them."""
        weight, leak = precise(self.recurrent_weight), torch.exp(-precise(self.log_tau))
        return FullParameters(weight, precise(self.reversal), self.capacitance, leak)

    def membrane(self, drive: Float[Tensor, "B N"]) -> Membrane:
        return full_membrane(drive, self.physics(), self.adaptive)

    def scan(
        self, drive: Float[Tensor, "B T N"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        if self.path(drive, FullLTC) != "cpu":
            return super().scan(drive, x, elapsed)
        return full_scan(drive, x, elapsed * self.step_size, self.physics(), self.method)
