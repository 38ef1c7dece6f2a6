"""The diagonal scan on a GPU: one Triton kernel forwards, one backwards, behind the contract of the sequential scan.

Chosen by the dispatch of `kernels` for CUDA tensors (`available`). Two custom operators carry it, so that autograd,
torch.compile and export see it as one node each:

    ltc::triton_diagonal_scan             states of all tokens
    ltc::triton_diagonal_scan_backward    gradients of every tensor argument

Gradients of the neurons' parameters are summed over the batch in a fixed order, without atomics: the same input gives
the same bits. Unmeasured: no GPU was at hand; the tests run the kernels in Triton's interpreter (docs/kernels.md).
"""

import importlib.util
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ltc_textgen.config import Solver
from ltc_textgen.kernels.scans import PRECISIONS, Method, Neurons, check_arguments
from ltc_textgen.shapes import Float
from ltc_textgen.solvers import LONGEST_STEP

BLOCK = 32
"""Neurons of a program: one warp, so that small batches still spread over the device."""

LAUNCH = {"num_warps": 1, "enable_fp_fusion": True}
"""Options of the compiler; contracted multiply-adds are said aloud because their default is about to change."""

CODES = {Solver.semi_implicit: 0, Solver.exponential: 1, Solver.explicit: 2, Solver.runge_kutta: 3}
"""Solvers as `triton_kernels` counts them."""


def available(tensor: Tensor) -> bool:
    """Whether the kernels can run on the device of `tensor`, in its precision."""
    return tensor.is_cuda and tensor.dtype in PRECISIONS and not why_not(tensor.device)


@cache
def why_not(device: torch.device) -> str:
    """What a GPU lacks for these kernels; nothing if empty."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is None and (capability := torch.cuda.get_device_capability(device)) < (7, 0):
        return f"compute capability {capability[0]}.{capability[1]}, and Triton needs 7.0"
    return ""


def triton_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    neurons: Neurons,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """All states of a diagonal layer, and the last one. Arguments as `parallel.parallel_scan`.

    The tensors must share one device and one precision (float32 or float64); any strides. Their values are not
    checked: that would make the host wait for the device.

    Raises:
        UsageError: If a shape, dtype or device does not fit; the message names expected and got.
    """
    check_arguments(drive, x0, dt, neurons, method.steps)
    dt = dt.clamp_max(LONGEST_STEP)
    states = _scan(drive, x0, dt, *neurons, method.steps, CODES[method.solver], method.adaptive)
    return states, states[:, -1]


def _launch(
    kernel: str, x0: Tensor, tensors: list[Tensor], tokens: int, steps: int, solver: int, adaptive: bool
) -> None:
    from ltc_textgen.kernels import triton_kernels  # imports triton, which an installation for CPUs need not have

    batch, neurons = x0.shape
    grid = (batch, -(-neurons // BLOCK))
    with torch.cuda.device(x0.device) if x0.is_cuda else nullcontext():
        getattr(triton_kernels, kernel)[grid](
            *tensors, tokens, neurons, STEPS=steps, SOLVER=solver, ADAPTIVE=adaptive, BLOCK=BLOCK, **LAUNCH
        )


@torch.library.custom_op("ltc::triton_diagonal_scan", mutates_args=())
def _scan(
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
) -> Tensor:
    inputs = [tensor.contiguous() for tensor in (drive, x0, dt, self_weight, reversal, capacitance, leak)]
    states = drive.new_empty(*dt.shape, x0.shape[1])
    _launch("forward", x0, [*inputs, states], dt.shape[1], steps, solver, adaptive)
    return states


@_scan.register_fake
def _(drive: Tensor, x0: Tensor, dt: Tensor, *_: Any) -> Tensor:
    return drive.new_empty(*dt.shape, x0.shape[1])


@torch.library.custom_op("ltc::triton_diagonal_scan_backward", mutates_args=())
def _scan_backward(
    grad_states: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of drive, x0, dt, and (6, N): r_e, r_i, E_e, E_i, C, leak."""
    (batch, tokens), neurons = dt.shape, x0.shape[1]
    tensors = (drive, x0, dt, self_weight, reversal, capacitance, leak, states, grad_states)
    inputs = [tensor.contiguous() for tensor in tensors]
    grad_drive, grad_x0 = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    grad_dt = drive.new_empty(batch, tokens, -(-neurons // BLOCK))
    grad_neurons, scratch = drive.new_empty(batch, 6, neurons), drive.new_empty(batch, steps, neurons)
    outputs = [grad_drive, grad_x0, grad_dt, grad_neurons, scratch]
    _launch("backward", x0, [*inputs, *outputs], tokens, steps, solver, adaptive)
    return grad_drive, grad_x0, grad_dt.sum(-1), grad_neurons.sum(0)


@_scan_backward.register_fake
def _(grad_states: Tensor, states: Tensor, drive: Tensor, x0: Tensor, dt: Tensor, *_: Any) -> tuple[Tensor, ...]:
    contiguous = (drive.new_empty(drive.shape), x0.new_empty(x0.shape), dt.new_empty(dt.shape))
    return *contiguous, drive.new_empty(6, x0.shape[1])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.steps, ctx.solver, ctx.adaptive = inputs
    ctx.save_for_backward(output, *tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_drive, to_x0, to_dt, to_neurons = _scan_backward(
        gradient, *ctx.saved_tensors, ctx.steps, ctx.solver, ctx.adaptive
    )
    return to_drive, to_x0, to_dt, to_neurons[:2], to_neurons[2:4], to_neurons[4], to_neurons[5], None, None, None


_scan.register_autograd(_differentiate, setup_context=_remember)
