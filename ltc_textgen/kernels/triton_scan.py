"""The diagonal scan on a GPU: one Triton kernel forwards, one backwards, behind the contract of the sequential scan.

Chosen by `dispatch.choose` for CUDA tensors. It is registered as two custom operators, so that autograd, torch.compile
and export see it as one node each:

    ltc::triton_diagonal_scan             states of all tokens
    ltc::triton_diagonal_scan_backward    gradients of every tensor argument

Gradients of the neurons' parameters are summed over the batch in a fixed order, without atomics: the same input gives
the same bits. Unmeasured: no GPU was at hand; the tests run the kernels in Triton's interpreter (docs/kernels.md).
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltc_textgen.kernels.autograd import codes_of, method_of, reference_gradients
from ltc_textgen.kernels.reference import DiagonalParameters, check_diagonal, diagonal_membrane, sequential_scan
from ltc_textgen.shapes import Float
from ltc_textgen.solvers import LONGEST_STEP, Method

BLOCK = 32
"""Neurons of a program: one warp, so that small batches still spread over the device."""

LAUNCH = {"num_warps": 1, "enable_fp_fusion": True}
"""Options of the compiler; contracted multiply-adds are stated because their default is about to change."""


def triton_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    parameters: DiagonalParameters,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """All states of a diagonal layer, and the last one. Arguments as `scans.diagonal_scan`.

    The tensors must share one device and one precision (float32 or float64); any strides. Their values are not
    checked: that would make the host wait for the device.

    Raises:
        UsageError: If a shape, dtype or device does not fit; the message names expected and got.
    """
    check_diagonal(drive, x0, dt, parameters, method)
    dt = dt.clamp_max(LONGEST_STEP)
    states = _scan(drive, x0, dt, *parameters, *codes_of(method))
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
    feedback: Tensor,
    reversal: Tensor,
    capacitance: Tensor,
    leak: Tensor,
    steps: int,
    solver: int,
    adaptive: bool,
) -> Tensor:
    inputs = [tensor.contiguous() for tensor in (drive, x0, dt, feedback, reversal, capacitance, leak)]
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
    feedback: Tensor,
    reversal: Tensor,
    capacitance: Tensor,
    leak: Tensor,
    steps: int,
    solver: int,
    adaptive: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of drive, x0, dt, and (6, N): r_e, r_i, E_e, E_i, C, leak."""
    (batch, tokens), neurons = dt.shape, x0.shape[1]
    tensors = (drive, x0, dt, feedback, reversal, capacitance, leak, states, grad_states)
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
    codes = ctx.steps, ctx.solver, ctx.adaptive
    if torch.is_grad_enabled():
        _, *inputs = ctx.saved_tensors
        reference = partial(_reference, codes)
        return (*reference_gradients(reference, inputs, ctx.needs_input_grad[:7], (gradient,)), None, None, None)
    to_drive, to_x0, to_dt, to_neurons = _scan_backward(gradient, *ctx.saved_tensors, *codes)
    return to_drive, to_x0, to_dt, to_neurons[:2], to_neurons[2:4], to_neurons[4], to_neurons[5], None, None, None


def _reference(codes: tuple[int, int, bool], drive: Tensor, x0: Tensor, dt: Tensor, *parameters: Tensor) -> Tensor:
    method = method_of(codes)
    return sequential_scan(diagonal_membrane, drive, x0, dt, DiagonalParameters(*parameters), method)[0]


_scan.register_autograd(_differentiate, setup_context=_remember)
