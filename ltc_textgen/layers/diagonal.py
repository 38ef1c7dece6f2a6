"""Diagonal coupling: one excitatory and one inhibitory synapse per neuron, which sees the input and itself.

    C dx/dt = -g_leak x + f_e (E_e - x) + f_i (-E_i - x)
    f_e = sigmoid(W_e u + b_e + r_e x),   f_i = sigmoid(W_i u + b_i + r_i x)

Input mixing is one matrix product over all tokens; the recurrence is elementwise: O(N) per token instead of O(N^2).
The conductances still depend on the state, so tau_sys = C / (g_leak + f_e + f_i) is a liquid time constant, and the
Jacobian is exactly diagonal.

Contraction. The influence of the initial state decays if the token map F has |dF/dx| < 1. For the semi-implicit step,
with D = C + h (g_leak + f_e + f_i) and f' = f (1 - f), differentiating x' = (C x + h (f_e E_e - f_i E_i)) / D gives

    dx'/dx = [C + h (r_e f_e' (E_e - x') + r_i f_i' (-E_i - x'))] / D

A state in [m, M] = [min(0, E_e, -E_i), max(0, E_e, -E_i)] stays there, so each distance |E_s - x'| is at most
R_s = max(E_s - m, M - E_s). If |r_s| R_s <= 1 for both synapses, each product is at most f_s (1 - f_s) < f_s in
size, hence -D < C - h (f_e + f_i) < numerator < C + h (f_e + f_i) < D: |dx'/dx| < 1 for every h > 0, C, g_leak and
input. The exponential sub-step obeys it too: there dx'/df_s is the mean of E_s - x along the sub-step times at most
(1 - e^-q) / G with q = h G / C, so |dx'/dx| <= e^-q + (1 - e^-q) (f_e + f_i) / G < 1. With frozen time constants
E_s itself takes that place, and C + h g_leak divides; as f' <= 1/4, |r_s E_s| < 2 g_leak suffices. This extends the
one-synapse condition |r E| <= 1 (R = |E| there); `contractive=True` keeps r inside it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ltc_textgen.config import Coupling, ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.diagonal_layer import fused_layer
from ltc_textgen.kernels.dispatch import (
    Access,
    access,
    changed,
    fits_directly,
    is_standard,
    layer_pays,
    observed,
    product_dtype,
    record,
)
from ltc_textgen.kernels.matmul import linear
from ltc_textgen.kernels.newton_scan import parallel_scan
from ltc_textgen.kernels.reference import DiagonalParameters, diagonal_membrane
from ltc_textgen.kernels.scans import diagonal_scan
from ltc_textgen.kernels.triton_scan import triton_scan
from ltc_textgen.layers.base import MembraneLayer, precise, solver_settings
from ltc_textgen.shapes import Bool, Float, Tensor
from ltc_textgen.solvers import Membrane

HORIZON_OVER_CAPACITANCE = (0.05, 4.0)
LEAK_RANGE = (1e-3, 0.5)
SCANS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "cpu": diagonal_scan,
    "triton": triton_scan,
    "parallel": parallel_scan,
}
"""What `dispatch.choose` may answer, apart from the loop over tokens."""
FROZEN_FRACTION = 0.99
"""Fraction of its bound on r that a layer with frozen time constants uses; all of it would allow a slope of 1."""
MIN_REVERSAL = 0.05
"""Below this distance to a reversal potential the bound on r stops growing: a smaller bound contracts as well."""


@record
class DiagonalLTC(MembraneLayer):
    """Liquid layer with elementwise recurrence. Arguments as `MembraneLayer`.

    Args:
        input_size: D, features of one token.
        hidden_size: N, neurons.
        contractive: Keep r_e and r_i where every token map contracts (see above; semi_implicit and exponential). The
            parameter `self_weight` is then the unbounded argument of a tanh.
        **solver: `steps`, `step_size`, `solver` and `adaptive`, as in `MembraneLayer`.
    """

    coupling = Coupling.diagonal

    def __init__(self, input_size: int, hidden_size: int, *, contractive: bool = False, **solver: Any) -> None:
        super().__init__(input_size, hidden_size, **solver)
        if contractive and self.solver not in {Solver.semi_implicit, Solver.exponential}:
            raise UsageError(f"contractive goes with solver = semi_implicit or exponential, not {self.solver}")
        self.contractive = contractive
        self.input = nn.Linear(input_size, 2 * hidden_size)
        self.self_weight = nn.Parameter(torch.empty(2, hidden_size))  # r_e, r_i
        self.reversal = nn.Parameter(torch.empty(2, hidden_size))  # E_e, E_i
        self.log_capacitance = nn.Parameter(torch.empty(hidden_size))
        self.log_leak = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    @classmethod
    def from_settings(cls, settings: ModelConfig, input_size: int, hidden_size: int) -> "DiagonalLTC":
        return cls(input_size, hidden_size, contractive=settings.contractive, **solver_settings(settings))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """C and g_leak log-uniform, E = 1, r = 0.

        At the zero state both synapses are half open; tau_sys = C / (g_leak + 1) runs from 1/6 to 20 horizons; where an
        input closes them it rises towards C / g_leak, up to thousands.
        """
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.input.bias)
        nn.init.zeros_(self.self_weight)
        nn.init.ones_(self.reversal)
        low, high = (math.log(self.steps * self.step_size / ratio) for ratio in HORIZON_OVER_CAPACITANCE[::-1])
        self.log_capacitance.uniform_(low, high)
        self.log_leak.uniform_(math.log(LEAK_RANGE[0]), math.log(LEAK_RANGE[1]))

    def project(self, u: Float[Tensor, "B T D"]) -> Float[Tensor, "B T two_N"]:
        if observed(self.input, nn.Linear):
            return self.input(u)
        return linear(u, self.input.weight, self.input.bias)

    def run(
        self,
        u: Float[Tensor, "B T D"],
        x: Float[Tensor, "B N"],
        elapsed: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None,
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        """As `LiquidLayer.run`, in one pass where that is faster."""
        weights = 2 * self.hidden_size * self.input_size
        if (
            access(u, x, elapsed) != Access.direct
            or not layer_pays(u.shape[0], u.shape[1], weights)
            or self._is_changed()
        ):
            return super().run(u, x, elapsed, mask)
        weight, bias, parameters = self.input.weight, self.input.bias, self.physics()
        if product_dtype() != torch.float32 or not fits_directly(u, weight, bias, *parameters):
            return super().run(u, x, elapsed, mask)
        dt = (elapsed if mask is None else torch.where(mask, elapsed, 0.0)).float() * self.step_size
        return fused_layer(u, x.float(), dt, weight, bias, parameters, self.method)

    def _is_changed(self) -> bool:
        """Whether `project` or `scan` may differ from what the kernel of a whole layer computes."""
        names = ("project", "scan", "masked_scan", "step", "membrane", "physics")
        return observed(self.input, nn.Linear) or not is_standard(self.solver) or changed(self, DiagonalLTC, *names)

    @property
    def capacitance(self) -> Float[Tensor, " N"]:
        return torch.exp(precise(self.log_capacitance))

    @property
    def feedback(self) -> Float[Tensor, "2 N"]:
        """r_e and r_i, as the recurrence uses them."""
        return self.feedback_bound() * torch.tanh(self.self_weight) if self.contractive else self.self_weight

    def feedback_bound(self) -> Float[Tensor, "2 N"]:
        """Largest |r_e| and |r_i| for which every token map contracts."""
        targets = torch.stack((self.reversal[0], -self.reversal[1]))
        if not self.adaptive:
            return FROZEN_FRACTION * 2 * torch.exp(self.log_leak) / targets.abs().clamp_min(MIN_REVERSAL)
        low, high = targets.amin(0).clamp_max(0), targets.amax(0).clamp_min(0)
        return 1 / torch.maximum(targets - low, high - targets).clamp_min(MIN_REVERSAL)

    def physics(self) -> DiagonalParameters:
        """The parameters as the recurrence uses them."""
        leak = torch.exp(precise(self.log_leak))
        return DiagonalParameters(precise(self.feedback), precise(self.reversal), self.capacitance, leak)

    def membrane(self, drive: Float[Tensor, "B two_N"]) -> Membrane:
        return diagonal_membrane(drive, self.physics(), self.adaptive)

    def scan(
        self, drive: Float[Tensor, "B T two_N"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        fused = SCANS.get(self.path(drive, DiagonalLTC))
        if fused is None:
            return super().scan(drive, x, elapsed)
        return fused(drive, x, elapsed * self.step_size, self.physics(), self.method)
