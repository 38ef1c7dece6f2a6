"""A diagonal layer on the CPU, input projection and scan as one node of the graph and one pass over the tokens.

Drives are made, scanned and turned into gradients a hundred tokens at a time, while a core has them in its cache.
Reference: `cells.diagonal`; source: csrc/layer.cpp.
"""

import ctypes
from functools import partial
from typing import Any, NamedTuple

import torch

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import matmul
from ltc_textgen.kernels.autograd import Direct, address, dense, is_direct, room, wants_gradient
from ltc_textgen.kernels.library import LIBRARY, Shape, pointers, raise_for, threads_for
from ltc_textgen.kernels.scans import DIAGONAL
from ltc_textgen.shapes import Float, Tensor

LARGEST = 1 << 20
"""Weights of the projection above which the gradient of them that every thread keeps does not stay in a cache."""


class _Forward(ctypes.Structure):
    _fields_ = (
        ("scan", DIAGONAL.forward_arrays),
        ("D", ctypes.c_int64),
        *pointers("u", "weight", "bias", "drive"),
    )


class _Backward(ctypes.Structure):
    _fields_ = (
        ("scan", DIAGONAL.backward_arrays),
        ("forward", _Forward),
        *pointers("u_grad", "weight_grad", "bias_grad"),
    )


class LayerWeights(NamedTuple):
    """Parameters of a layer.

    Args:
        input: W_e over W_i, (2N, D), and
        bias: b_e and b_i, (2N,).
        feedback: r_e and r_i, (2, N).
        reversal: E_e and E_i, (2, N).
        log_capacitance: log C, (N,).
        log_leak: log g_leak, (N,).
    """

    input: Tensor
    bias: Tensor
    feedback: Tensor
    reversal: Tensor
    log_capacitance: Tensor
    log_leak: Tensor


def worthwhile(u: Tensor, x0: Tensor, elapsed: Tensor, weights: LayerWeights) -> bool:
    """Whether `fused_layer` may take a call in plain eager code, and is faster than product and scan one by one.

    It is where our own product is. Threads share out sequences alone, so there must be enough of them.
    """
    if not matmul.PAYS or torch.is_autocast_enabled("cpu") or not is_direct(u, x0, elapsed, *weights):
        return False
    (B, T, _), size, threads = u.shape, weights.input.numel(), torch.get_num_threads()
    shared = B % threads == 0 or 4 * threads <= B
    if not shared or size > LARGEST or B * T * size < matmul.SMALLEST:
        return False
    return all(tensor.dtype == torch.float32 and tensor.is_cpu for tensor in (u, *weights))


def fused_layer(
    u: Float[Tensor, "B T D"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    weights: LayerWeights,
    method: tuple[int, int, bool],
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Run a diagonal layer over sequences. float32 tensors on the CPU.

    Args:
        u: Inputs.
        x0: States before the first token.
        dt: Length of a sub-step of each token, >= 0 and finite. Zero leaves the state as it is.
        weights: Parameters.
        method: Sub-steps per token, code of the solver, whether synapses change the time constants.

    Returns:
        States after each token, and the last. All tensors are differentiable, once.

    Raises:
        UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
    """
    inputs = (u, x0, dt, *weights)
    if wants_gradient(*inputs):
        return Direct.apply(partial(_forward_kept, method), partial(_pull, method), *inputs)
    return _run(method, inputs, keep=False)[0]


def _forward_kept(method: tuple[int, int, bool], *inputs: Tensor) -> tuple[Any, ...]:
    return _run(method, inputs, keep=True)


def _run(method: tuple[int, int, bool], inputs: tuple[Tensor, ...], keep: bool) -> tuple[Any, ...]:
    """States and last, and what the way back needs."""
    given, shape, D = _checked(method, inputs)
    u, x0, dt, weight, bias, feedback, reversal, log_capacitance, log_leak = given
    capacitance, leak = log_capacitance.exp(), log_leak.exp()
    B, T, N = shape.B, shape.T, shape.N
    states, drive = room(B, T, N), room(B, T, 2 * N) if keep else None
    scan = DIAGONAL.forward_arrays(None, *map(address, (x0, dt, feedback, reversal, capacitance, leak, states)))
    call = _Forward(scan, D, *map(address, (u, weight, bias, drive)))
    assert LIBRARY is not None
    status = LIBRARY.ltc_layer_forward(ctypes.byref(shape), ctypes.byref(call))
    raise_for(status, {"dt": dt, "capacitance": capacitance, "leak": leak})
    kept = (u, x0, dt, weight, feedback, reversal, capacitance, leak, states, drive)
    return (states, states[:, -1].clone()), kept


def _checked(method: tuple[int, int, bool], inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Shape, int]:
    u, x0, weight = inputs[0], inputs[1], inputs[3]
    if u.ndim != 3 or x0.ndim != 2 or 0 in u.shape or 0 in x0.shape:
        got = f"{tuple(u.shape)} and {tuple(x0.shape)}"
        raise UsageError(f"u and x0: expected (B, T, D) and (B, N) with B, T, D, N >= 1, got {got}")
    (B, T, D), N = u.shape, x0.shape[1]
    shapes = ((B, T, D), (B, N), (B, T), (2 * N, D), (2 * N,), (2, N), (2, N), (N,), (N,))
    names = ("u", "x0", "dt", *LayerWeights._fields)
    given = [dense(name, tensor, shape) for name, tensor, shape in zip(names, inputs, shapes, strict=True)]
    return given, _shape((B, T, N), method, weight), D


def _shape(sizes: tuple[int, int, int], method: tuple[int, int, bool], weight: Tensor) -> Shape:
    shape = DIAGONAL.shape(sizes, *method)
    shape.threads = threads_for(sizes[0] * sizes[1] * weight.numel())
    return shape


def _pull(
    method: tuple[int, int, bool], needed: tuple[bool, ...], gradients: tuple[Tensor | None, ...], *kept: Tensor
) -> tuple[Tensor | None, ...]:
    u, x0, dt, weight, feedback, reversal, capacitance, leak, states, drive = kept
    B, T, N = states.shape
    shape = _shape((B, T, N), method, weight)
    states_grad = _readable("gradient of states", gradients[0], (B, T, N))
    last_grad = _readable("gradient of last", gradients[1], (B, N))
    with_weight = needed[3] or needed[4]
    u_grad = room(*u.shape) if needed[0] else None
    dt_grad = room(B, T) if needed[2] else None
    weight_grad, bias_grad = (room(2 * N, u.shape[2]), room(2 * N)) if with_weight else (None, None)
    x0_grad, rest = room(B, N), [room(*tensor.shape) for tensor in (feedback, reversal, capacitance, leak)]
    scan = DIAGONAL.forward_arrays(None, *map(address, (x0, dt, feedback, reversal, capacitance, leak, states)))
    backward = DIAGONAL.backward_arrays(scan, *map(address, (states_grad, last_grad, None, x0_grad, dt_grad, *rest)))
    forward = _Forward(scan, u.shape[2], *map(address, (u, weight, None, drive)))
    call = _Backward(backward, forward, *map(address, (u_grad, weight_grad, bias_grad)))
    assert LIBRARY is not None
    raise_for(LIBRARY.ltc_layer_backward(ctypes.byref(shape), ctypes.byref(call)), {})
    rest[2].mul_(capacitance)  # through the exponential
    rest[3].mul_(leak)
    found = (u_grad, x0_grad, dt_grad, weight_grad, bias_grad, *rest)
    return tuple(gradient if wanted else None for gradient, wanted in zip(found, needed, strict=True))


def _readable(name: str, gradient: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if gradient is None:
        return None
    return dense(name, gradient if is_direct(gradient) else room(*shape).copy_(gradient), shape)
