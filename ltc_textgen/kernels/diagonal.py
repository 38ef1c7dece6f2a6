"""The fused scan of the diagonal coupling on the CPU, as an operator that autograd, torch.compile and export see.

Reference of the mathematics: `cells.diagonal`, integrated by `solvers`. Source of the kernel: csrc/diagonal.cpp.
"""

import ctypes
from typing import Any

import torch

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.library import LIBRARY, SOLVER_CODES, Shape, matrix, pointers, raise_for, threads_for
from ltc_textgen.kernels.operators import is_plain
from ltc_textgen.shapes import Float, Tensor

INPUTS = ("drive", "x0", "dt", "self_weight", "reversal", "capacitance", "leak")


class _Forward(ctypes.Structure):
    _fields_ = pointers(*INPUTS, "states")


class _Backward(ctypes.Structure):
    _fields_ = (
        ("forward", _Forward),
        *pointers("states_grad", "last_grad"),
        *pointers(*(f"{name}_grad" for name in INPUTS)),
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
    code = SOLVER_CODES[solver]
    if is_plain(*inputs):
        return _forward(*inputs, steps, code, adaptive)
    states, last = _scan(*inputs, steps, code, adaptive)
    return states, last


def _arrays(*inputs: Tensor) -> tuple[Tensor, ...]:
    drive = inputs[0]
    if drive.ndim != 3 or 0 in drive.shape or drive.shape[2] % 2:
        raise UsageError(f"drive: expected (B, T, 2 N) with B, T, N >= 1, got {tuple(drive.shape)}")
    B, T, N = drive.shape[0], drive.shape[1], drive.shape[2] // 2
    shapes = ((B, T, 2 * N), (B, N), (B, T), (2, N), (2, N), (N,), (N,))
    return tuple(matrix(*item) for item in zip(INPUTS, inputs, shapes, strict=True))


def _shape(drive: Tensor, steps: int, solver: int, adaptive: bool) -> Shape:
    B, T, N = drive.shape[0], drive.shape[1], drive.shape[2] // 2
    if not 1 <= steps < 2**31:
        raise UsageError(f"steps: expected 1 or more, got {steps}")
    return Shape(B, T, N, steps, solver, adaptive, threads_for(B * T * N * steps))


def _forward(
    drive: Tensor,
    x0: Tensor,
    dt: Tensor,
    self_weight: Tensor,
    reversal: Tensor,
    capacitance: Tensor,
    leak: Tensor,
    steps: int,
    solver: int,
    adaptive: bool,
) -> tuple[Tensor, Tensor]:
    assert LIBRARY is not None
    arrays = _arrays(drive, x0, dt, self_weight, reversal, capacitance, leak)
    shape = _shape(drive, steps, solver, adaptive)
    states = torch.empty(shape.B, shape.T, shape.N)
    call = _Forward(*(array.data_ptr() for array in arrays), states.data_ptr())
    raise_for(LIBRARY.ltc_diagonal_forward(ctypes.byref(shape), ctypes.byref(call)), dt, capacitance, leak)
    return states, states[:, -1].clone()


_scan = torch.library.custom_op(
    "ltc::diagonal_scan",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor drive, Tensor x0, Tensor dt, Tensor self_weight, Tensor reversal, Tensor capacitance, Tensor leak,"
    " int steps, int solver, bool adaptive) -> (Tensor, Tensor)",
)


@_scan.register_fake
def _(drive: Tensor, x0: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return drive.new_empty(drive.shape[0], drive.shape[1], x0.shape[1]), torch.empty_like(x0).contiguous()


def _gradients(
    states_grad: Tensor | None,
    last_grad: Tensor | None,
    states: Tensor,
    drive: Tensor,
    x0: Tensor,
    dt: Tensor,
    self_weight: Tensor,
    reversal: Tensor,
    capacitance: Tensor,
    leak: Tensor,
    steps: int,
    solver: int,
    adaptive: bool,
    with_dt: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    assert LIBRARY is not None
    arrays = _arrays(drive, x0, dt, self_weight, reversal, capacitance, leak)
    shape = _shape(drive, steps, solver, adaptive)
    states = matrix("states", states, (shape.B, shape.T, shape.N))
    incoming = [
        None if states_grad is None else matrix("gradient of states", states_grad, tuple(states.shape)),
        None if last_grad is None else matrix("gradient of last", last_grad, tuple(x0.shape)),
    ]
    gradients = [torch.empty(array.shape) for array in arrays]
    call = _Backward(
        _Forward(*(array.data_ptr() for array in arrays), states.data_ptr()),
        *(None if gradient is None else gradient.data_ptr() for gradient in incoming),
        *(gradient.data_ptr() for gradient in gradients),
    )
    if not with_dt:
        call.dt_grad, gradients[2] = None, torch.empty(0)
    raise_for(LIBRARY.ltc_diagonal_backward(ctypes.byref(shape), ctypes.byref(call)), dt, capacitance, leak)
    return tuple(gradients)  # type: ignore[return-value]


_scan_backward = torch.library.custom_op(
    "ltc::diagonal_scan_backward",
    _gradients,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor? states_grad, Tensor? last_grad, Tensor states, Tensor drive, Tensor x0, Tensor dt,"
    " Tensor self_weight, Tensor reversal, Tensor capacitance, Tensor leak, int steps, int solver, bool adaptive,"
    " bool with_dt) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_scan_backward.register_fake
def _(states_grad: Tensor | None, last_grad: Tensor | None, states: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    gradients = [torch.empty_like(array).contiguous() for array in rest[:7]]
    if not rest[-1]:
        gradients[2] = states.new_empty(0)
    return tuple(gradients)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], *inputs[:7])
    ctx.method = inputs[7:]


def _backward(ctx: Any, states_grad: Tensor | None, last_grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if states_grad is None and last_grad is None:
        return (None,) * 10
    with_dt = ctx.needs_input_grad[2]
    gradients = list(_scan_backward(states_grad, last_grad, *ctx.saved_tensors, *ctx.method, with_dt))
    if not with_dt:
        gradients[2] = None
    return (*gradients, None, None, None)


_scan.register_autograd(_backward, setup_context=_keep)
