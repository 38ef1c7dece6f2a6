"""The fused scan of the diagonal coupling on the CPU. Reference: `cells.diagonal`; source: csrc/diagonal.cpp."""

from ltc_textgen.kernels.arguments import Method, Neurons
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
    neurons: Neurons,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate all tokens in order. float32 tensors on the CPU.

    Args:
        drive: W_e u + b_e and W_i u + b_i, side by side.
        x0: State before the first token.
        dt: Length of a sub-step of each token, step_size * elapsed, >= 0 and finite. Zero leaves the state as it is.
        neurons: Parameters.
        method: How a token is integrated.

    Returns:
        States after each token, and the last. All tensors are differentiable, once.

    Raises:
        UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
    """
    steps, solver, adaptive = method
    return SCAN(drive, x0, dt, *neurons, steps=steps, solver=solver, adaptive=adaptive)
