"""Diagonal coupling: one excitatory and one inhibitory synapse per neuron, which sees the input and itself.

    C dx/dt = -g_leak x + f_e (E_e - x) + f_i (-E_i - x)
    f_e = sigmoid(W_e u + b_e + r_e x),   f_i = sigmoid(W_i u + b_i + r_i x)

Input mixing is one matrix product over all tokens; the recurrence is elementwise: O(N) per token instead of O(N^2).
The conductances still depend on the state, so tau_sys = C / (g_leak + f_e + f_i) is a liquid time constant, and the
Jacobian is exactly diagonal.
"""

import math

import torch
from torch import nn

from ltc_textgen.cells.base import LiquidCell
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import Membrane

HORIZON_OVER_CAPACITANCE = (0.05, 4.0)
LEAK_RANGE = (1e-3, 0.5)


class DiagonalCell(LiquidCell):
    """Liquid layer with elementwise recurrence. Arguments as `LiquidCell`."""

    def __init__(self, input_size: int, hidden_size: int, **solver: object) -> None:
        super().__init__(input_size, hidden_size, **solver)  # type: ignore[arg-type]
        self.input = nn.Linear(input_size, 2 * hidden_size)
        self.self_weight = nn.Parameter(torch.empty(2, hidden_size))  # r_e, r_i
        self.reversal = nn.Parameter(torch.empty(2, hidden_size))  # E_e, E_i
        self.log_capacitance = nn.Parameter(torch.empty(hidden_size))
        self.log_leak = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Log-uniform C and g_leak, so that the layer holds time constants from a token to hundreds; E = 1, r = 0."""
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.input.bias)
        nn.init.zeros_(self.self_weight)
        nn.init.ones_(self.reversal)
        low, high = (math.log(self.steps * self.step_size / ratio) for ratio in HORIZON_OVER_CAPACITANCE[::-1])
        self.log_capacitance.uniform_(low, high)
        self.log_leak.uniform_(math.log(LEAK_RANGE[0]), math.log(LEAK_RANGE[1]))

    def project(self, u: Float[Tensor, "B T D"]) -> Float[Tensor, "B T two_N"]:
        return self.input(u)

    @property
    def capacitance(self) -> Float[Tensor, " N"]:
        return torch.exp(self.log_capacitance)

    def membrane(self, drive: Float[Tensor, "B two_N"]) -> Membrane:
        drive_e, drive_i = drive.chunk(2, dim=-1)
        leak = torch.exp(self.log_leak)
        (r_e, r_i), (reversal_e, reversal_i) = self.self_weight, self.reversal

        def conductances(x: Tensor) -> tuple[Tensor, Tensor]:
            f_e = torch.sigmoid(drive_e + r_e * x)
            f_i = torch.sigmoid(drive_i + r_i * x)
            return (leak + f_e + f_i if self.adaptive else leak), f_e * reversal_e - f_i * reversal_i

        return conductances
