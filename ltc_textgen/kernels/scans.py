"""The fused scans of three couplings on the CPU, each with the contract of `reference.sequential_scan`.

float32 tensors on the CPU; all of them but a mask are differentiable. Sources: csrc/diagonal.cpp, csrc/full.cpp,
csrc/synaptic.cpp.
"""

from ltc_textgen.kernels.autograd import ScanOperator
from ltc_textgen.kernels.reference import (
    DiagonalParameters,
    FullParameters,
    SynapticParameters,
    diagonal_membrane,
    full_membrane,
    synaptic_membrane,
)
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import Method

DIAGONAL = ScanOperator(
    "diagonal",
    DiagonalParameters,
    diagonal_membrane,
    lambda B, T, N: ((B, T, 2 * N), (B, N), (B, T), (2, N), (2, N), (N,), (N,)),
    per_stage=0,
    work=lambda N: 2 * N,
)

FULL = ScanOperator(
    "full",
    FullParameters,
    full_membrane,
    lambda B, T, N: ((B, T, N), (B, N), (B, T), (N, N), (N,), (N,), (N,)),
    per_stage=1,
    work=lambda N: N + N * N // 16,
)

SYNAPTIC = ScanOperator(
    "synaptic",
    SynapticParameters,
    synaptic_membrane,
    lambda B, T, N: ((B, T, 2 * N), (B, N), (B, T), *((N, N),) * 5, (N,), (N,), (N,)),
    per_stage=2,
    work=lambda N: N * N,
)


def diagonal_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    parameters: DiagonalParameters,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate all tokens in order. For the gradient it keeps the states.

    Args:
        drive: W_e u + b_e and W_i u + b_i, side by side.
        x0: State before the first token.
        dt: Length of a sub-step of each token, step_size * elapsed, >= 0 and finite. Zero leaves the state as it is.
        parameters: Of the neurons.
        method: How a token is integrated.

    Returns:
        States after each token, and the last.

    Raises:
        UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
    """
    return DIAGONAL(drive, x0, dt, *parameters, method=method)


def full_scan(
    drive: Float[Tensor, "B T N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    parameters: FullParameters,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate all tokens in order. Arguments, result and errors as `diagonal_scan`; the drive is W_in u + b.

    For the gradient it keeps f of every solver stage, B x T x stages x N numbers: fewer operations than computing the
    products by W again.
    """
    return FULL(drive, x0, dt, *parameters, method=method)


def synaptic_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    parameters: SynapticParameters,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate all tokens in order. Arguments, result and errors as `diagonal_scan`.

    The drive is conductance and current of the inputs' synapses, side by side (`synaptic_sums.synaptic_sums`).

    For the gradient it keeps G and I of every solver stage, 2 x B x T x stages x N numbers, and computes the sigmoids
    of the synapses again. Synapses outside the mask cost nothing where 16 neighbouring targets of a source lack them
    all, and have no effect and no gradient.
    """
    return SYNAPTIC(drive, x0, dt, *parameters, method=method)
