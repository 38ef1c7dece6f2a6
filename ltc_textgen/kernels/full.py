"""The fused scan of the full coupling on the CPU. Reference: `cells.full`; source: csrc/full.cpp."""

from typing import NamedTuple

from ltc_textgen.kernels.arguments import Method
from ltc_textgen.kernels.operators import ScanOperator
from ltc_textgen.shapes import Float, Tensor

_scan = ScanOperator(
    "full",
    ("drive", "x0", "dt", "weight", "reversal", "capacitance", "leak"),
    lambda B, T, N: ((B, T, N), (B, N), (B, T), (N, N), (N,), (N,), (N,)),
    per_stage=1,
    work=lambda N: N + N * N // 16,
)


class CoupledNeurons(NamedTuple):
    """What the membranes of a full layer are made of (see `cells.full`).

    Args:
        weight: W_rec, [target, source].
        reversal: A.
        capacitance: C > 0.
        leak: g_leak >= 0.
    """

    weight: Float[Tensor, "N N"]
    reversal: Float[Tensor, " N"]
    capacitance: Float[Tensor, " N"]
    leak: Float[Tensor, " N"]


def full_scan(
    drive: Float[Tensor, "B T N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    neurons: CoupledNeurons,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate all tokens in order. float32 tensors on the CPU.

    For the gradient it keeps f of every solver stage, B x T x stages x N numbers: fewer operations than computing the
    products by W again.

    Args:
        drive: W_in u + b.
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
    return _scan(drive, x0, dt, *neurons, steps=steps, solver=solver, adaptive=adaptive)
