"""The fused scan of the diagonal coupling on the CPU. Reference: `cells.diagonal`; source: csrc/diagonal.cpp."""

from ltc_textgen.config import Solver
from ltc_textgen.kernels.operators import ScanOperator
from ltc_textgen.shapes import Float, Tensor

SCAN = ScanOperator(
    "diagonal",
    ("drive", "x0", "dt", "self_weight", "reversal", "capacitance", "leak"),
    lambda B, T, N: ((B, T, 2 * N), (B, N), (B, T), (2, N), (2, N), (N,), (N,)),
    per_stage=0,
    work=lambda N: 2 * N,
)


def diagonal_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    self_weight: Float[Tensor, "2 N"],
    reversal: Float[Tensor, "2 N"],
    capacitance: Float[Tensor, " N"],
    leak: Float[Tensor, " N"],
    steps: int,
    solver: Solver,
    adaptive: bool,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate all tokens in order. float32 tensors on the CPU.

    Args:
        drive: W_e u + b_e and W_i u + b_i, side by side.
        x0: State before the first token.
        dt: Length of a sub-step of each token, step_size * elapsed, >= 0 and finite. Zero leaves the state as it is.
        self_weight: r_e and r_i.
        reversal: E_e and E_i.
        capacitance: C > 0.
        leak: g_leak >= 0.
        steps: Sub-steps per token.
        solver: How a sub-step is taken.
        adaptive: Whether synapses change the time constants.

    Returns:
        States after each token, and the last. All tensors are differentiable, once.

    Raises:
        UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
    """
    inputs = (drive, x0, dt, self_weight, reversal, capacitance, leak)
    return SCAN(*inputs, steps=steps, solver=solver, adaptive=adaptive)
