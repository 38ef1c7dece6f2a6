"""The fused scan of the synaptic coupling on the CPU, and the sums over synapses from the inputs.

Reference: `cells.synaptic`; source: csrc/synaptic.cpp and csrc/synapses.h.
"""

import ctypes
from typing import Any

import torch

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.library import LIBRARY, pointers, raise_for, threads_for
from ltc_textgen.kernels.operators import Direct, ScanOperator, address, dense, is_direct, room, wants_gradient
from ltc_textgen.shapes import Bool, Float, Tensor

_scan = ScanOperator(
    "synaptic",
    ("drive", "x0", "dt", "w", "sigma", "mu", "reversal", "mask", "capacitance", "leak", "current"),
    lambda B, T, N: ((B, T, 2 * N), (B, N), (B, T), *((N, N),) * 5, (N,), (N,), (N,)),
    per_stage=2,
    work=lambda N: N * N,
)


def synaptic_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    w: Float[Tensor, "N N"],
    sigma: Float[Tensor, "N N"],
    mu: Float[Tensor, "N N"],
    reversal: Float[Tensor, "N N"],
    mask: Bool[Tensor, "N N"],
    capacitance: Float[Tensor, " N"],
    leak: Float[Tensor, " N"],
    current: Float[Tensor, " N"],
    steps: int,
    solver: Solver,
    adaptive: bool,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate all tokens in order. float32 tensors on the CPU.

    For the gradient it keeps G and I of every solver stage, 2 x B x T x stages x N numbers, and computes the sigmoids
    of the synapses again. Synapses outside the mask cost nothing where 16 neighbouring targets of a source lack them
    all, and have no effect and no gradient.

    Args:
        drive: Conductance and current of the inputs' synapses, side by side.
        x0: State before the first token.
        dt: Length of a sub-step of each token, step_size * elapsed, >= 0 and finite. Zero leaves the state as it is.
        w: Conductance of the open synapse, >= 0, [source, target].
        sigma: Slope of its sigmoid.
        mu: State of the source at which it is half open.
        reversal: E.
        mask: Which synapses exist.
        capacitance: C > 0.
        leak: g_leak >= 0.
        current: g_leak x_leak.
        steps: Sub-steps per token.
        solver: How a sub-step is taken.
        adaptive: Whether synapses change the time constants.

    Returns:
        States after each token, and the last. All tensors but the mask are differentiable, once.

    Raises:
        UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
    """
    inputs = (drive, x0, dt, w, sigma, mu, reversal, mask, capacitance, leak, current)
    return _scan(*inputs, steps=steps, solver=solver, adaptive=adaptive)


NAMES = ("values", "w", "sigma", "mu", "reversal", "mask")


class _Forward(ctypes.Structure):
    _fields_ = pointers(*NAMES, "sums")


class _Backward(ctypes.Structure):
    _fields_ = (("forward", _Forward), *pointers("sums_grad", *(f"{name}_grad" for name in NAMES[:5])))


def synaptic_sums(
    values: Float[Tensor, "M P"],
    w: Float[Tensor, "P N"],
    sigma: Float[Tensor, "P N"],
    mu: Float[Tensor, "P N"],
    reversal: Float[Tensor, "P N"],
    mask: Bool[Tensor, "P N"],
) -> Float[Tensor, "M two_N"]:
    """Conductance sum_j w s and current sum_j w s E onto every neuron, side by side, s = sigmoid(sigma (values - mu)).

    Args:
        values: Of the sources, one row per token.
        w: Conductance of the open synapse; the other matrices as in `synaptic_scan`.
        sigma: Slope.
        mu: Value of the source at which the synapse is half open.
        reversal: E.
        mask: Which synapses exist.

    Returns:
        The sums. All tensors but the mask are differentiable, once.

    Raises:
        UsageError: If a dtype, device or shape cannot be; the message names expected and got.
    """
    inputs = (values, w, sigma, mu, reversal, mask)
    if not is_direct(*inputs):
        return _sums_operator(*inputs)
    return Direct.apply(_sums_kept, _sums_pull, *inputs) if wants_gradient(*inputs) else _sums(*inputs)


def _sizes(values: Tensor, w: Tensor) -> tuple[int, int, int]:
    if values.ndim != 2 or w.ndim != 2 or 0 in values.shape or 0 in w.shape:
        got = f"{tuple(values.shape)} and {tuple(w.shape)}"
        raise UsageError(f"values and w: expected (M, P) and (P, N) with M, P, N >= 1, got {got}")
    return values.shape[0], values.shape[1], w.shape[1]


def _arrays(inputs: tuple[Tensor, ...], sizes: tuple[int, int, int]) -> list[Tensor]:
    M, P, N = sizes
    checked = [dense("values", inputs[0], (M, P))]
    checked += [dense(name, tensor, (P, N)) for name, tensor in zip(NAMES[1:5], inputs[1:5], strict=True)]
    return [*checked, dense("mask", inputs[5], (P, N), torch.bool)]


def _sums(values: Tensor, w: Tensor, sigma: Tensor, mu: Tensor, reversal: Tensor, mask: Tensor) -> Tensor:
    assert LIBRARY is not None
    sizes = _sizes(values, w)
    arrays = _arrays((values, w, sigma, mu, reversal, mask), sizes)
    sums = room(sizes[0], 2 * sizes[2])
    call = _Forward(*map(address, arrays), address(sums))
    _run(LIBRARY.ltc_sums_forward, sizes, call)
    return sums


def _sums_gradients(
    sums_grad: Tensor, values: Tensor, w: Tensor, sigma: Tensor, mu: Tensor, reversal: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    assert LIBRARY is not None
    sizes = _sizes(values, w)
    arrays = _arrays((values, w, sigma, mu, reversal, mask), sizes)
    sums_grad = dense("gradient of sums", sums_grad, (sizes[0], 2 * sizes[2]))
    gradients = [room(*array.shape) for array in arrays[:5]]
    call = _Backward(_Forward(*map(address, arrays), None), address(sums_grad), *map(address, gradients))
    _run(LIBRARY.ltc_sums_backward, sizes, call)
    return tuple(gradients)  # type: ignore[return-value]


def _sums_kept(*inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return _sums(*inputs), inputs


def _sums_pull(needed: Any, gradients: tuple[Tensor], *inputs: Tensor) -> tuple[Tensor | None, ...]:
    backward = _sums_gradients if is_direct(*gradients, *inputs) else _sums_backward
    found = backward(*gradients, *inputs)
    return (*(g if n else None for g, n in zip(found, needed[:-1], strict=True)), None)


def _run(function: Any, sizes: tuple[int, int, int], call: ctypes.Structure) -> None:
    counts = [ctypes.c_int64(size) for size in sizes]
    threads = threads_for(sizes[0] * sizes[1] * sizes[2])
    raise_for(function(*counts, ctypes.c_int(threads), ctypes.byref(call)), {})


_TENSORS = "Tensor values, Tensor w, Tensor sigma, Tensor mu, Tensor reversal, Tensor mask"
_sums_operator: Any = torch.library.custom_op(
    "ltc::synaptic_sums", _sums, mutates_args=(), device_types="cpu", schema=f"({_TENSORS}) -> Tensor"
)
_sums_backward: Any = torch.library.custom_op(
    "ltc::synaptic_sums_backward",
    _sums_gradients,
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor sums_grad, {_TENSORS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, sums_grad: Tensor) -> tuple[Tensor | None, ...]:
    return _sums_pull(ctx.needs_input_grad, (sums_grad,), *ctx.saved_tensors)


def _gradient_shapes(sums_grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(sums_grad.new_empty(array.shape) for array in inputs[:5])


_sums_operator.register_fake(lambda values, w, *_: values.new_empty(values.shape[0], 2 * w.shape[1]))
_sums_backward.register_fake(_gradient_shapes)
_sums_operator.register_autograd(_differentiate, setup_context=_keep)
