"""The sums over the synapses from the inputs onto the neurons of a synaptic layer, on the CPU.

Reference: `reference.synaptic_sums`; source: csrc/synaptic.cpp and csrc/synapses.h.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import reference
from ltc_textgen.kernels.autograd import (
    Direct,
    Kernel,
    Optional,
    address,
    dense,
    reference_gradients,
    room,
    wants_gradient,
)
from ltc_textgen.kernels.dispatch import Access, access
from ltc_textgen.kernels.library import LIBRARY, pointers, raise_for, threads_for
from ltc_textgen.kernels.reference import Synapses
from ltc_textgen.shapes import Float, Tensor

NAMES = ("values", *Synapses._fields)


class _Forward(ctypes.Structure):
    _fields_ = pointers(*NAMES, "sums")


class _Backward(ctypes.Structure):
    _fields_ = (("forward", _Forward), *pointers("sums_grad", *(f"{name}_grad" for name in NAMES[:5])))


def synaptic_sums(values: Float[Tensor, "M P"], synapses: Synapses) -> Float[Tensor, "M two_N"]:
    """Conductance sum_j w s and current sum_j w s E onto every neuron, side by side, s = sigmoid(sigma (values - mu)).

    Args:
        values: Of the sources, one row per token.
        synapses: From the sources onto the neurons.

    Returns:
        The sums. All tensors but the mask are differentiable.

    Raises:
        UsageError: If a dtype, device or shape cannot be; the message names expected and got.
    """
    inputs = (values, *synapses)
    if access(*inputs) != Access.direct:
        return _sums_operator(*inputs)
    return Direct.apply(_KERNEL, *inputs) if wants_gradient(*inputs) else _sums(*inputs)


def _reference(values: Tensor, *synapses: Tensor) -> Tensor:
    return torch.cat(reference.synaptic_sums(values, Synapses(*synapses)), dim=-1)


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
    found = [room(*array.shape) for array in arrays[:5]]
    call = _Backward(_Forward(*map(address, arrays), None), address(sums_grad), *map(address, found))
    _run(LIBRARY.ltc_sums_backward, sizes, call)
    return found[0], found[1], found[2], found[3], found[4]


def _gradients(
    needed: Sequence[bool], gradients: Sequence[Tensor], inputs: Sequence[Tensor], _: Sequence[Tensor]
) -> tuple[Optional, ...]:
    backward = _sums_gradients if access(*gradients, *inputs) == Access.direct else _sums_backward
    found = backward(*gradients, *inputs)
    return (*(g if n else None for g, n in zip(found, needed[:-1], strict=True)), None)


_KERNEL = Kernel(lambda *inputs: (_sums(*inputs), ()), _gradients, _reference)


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
    needed, inputs = ctx.needs_input_grad, ctx.saved_tensors
    if torch.is_grad_enabled():
        return reference_gradients(_reference, inputs, needed, (sums_grad,))
    return _gradients(needed, (sums_grad,), inputs, ())


def _gradient_shapes(sums_grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(sums_grad.new_empty(array.shape) for array in inputs[:5])


_sums_operator.register_fake(lambda values, w, *_: values.new_empty(values.shape[0], 2 * w.shape[1]))
_sums_backward.register_fake(_gradient_shapes)
_sums_operator.register_autograd(_differentiate, setup_context=_keep)
