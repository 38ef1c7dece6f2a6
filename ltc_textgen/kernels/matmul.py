"""A linear layer on the CPU whose three products run on our own kernel, where that is faster than PyTorch's BLAS.

PyTorch's BLAS for float32 is MKL, which leaves the AVX-512 of AMD processors unused; there our product is about twice
as fast. Elsewhere `linear` is `torch.nn.functional.linear`. Source: csrc/product.cpp.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ltc_textgen.errors import UsageError
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
from ltc_textgen.kernels.dispatch import Access, access, fits_cpu, product_dtype, product_pays, record
from ltc_textgen.kernels.library import LIBRARY, SMALL, raise_for, threads_for
from ltc_textgen.shapes import Float, Tensor


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "depth", "columns")),
        ("threads", ctypes.c_int),
        *(("a", ctypes.c_void_p), ("a_row", ctypes.c_int64), ("a_column", ctypes.c_int64)),
        *(("b", ctypes.c_void_p), ("b_row", ctypes.c_int64), ("b_column", ctypes.c_int64)),
        *(("bias", ctypes.c_void_p), ("c", ctypes.c_void_p), ("row_sums", ctypes.c_void_p)),
    )


def linear(
    x: Float[Tensor, "*B D"], weight: Float[Tensor, "N D"], bias: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "*B N"]:
    """The map x W^T + b, as `torch.nn.functional.linear`, under autocast too.

    Args:
        x: Inputs.
        weight: W.
        bias: b; none if None.
    """
    inputs = (x, weight) if bias is None else (x, weight, bias)
    pays = product_pays(x.numel() * weight.shape[0]) and product_dtype() == torch.float32
    if not pays or not fits_cpu(*inputs):
        return F.linear(x, weight, bias)
    if access(*inputs) != Access.direct:
        return _linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])
    return Direct.apply(_KERNEL, x, weight, bias) if wants_gradient(*inputs) else _rows(x, weight, bias)


@record
class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`: the same parameters and, but for rounding, the same numbers."""

    def forward(self, input: Float[Tensor, "*B D"]) -> Float[Tensor, "*B N"]:
        return linear(input, self.weight, self.bias)


def product(
    a: Float[Tensor, "M K"],
    b: Float[Tensor, "K N"],
    bias: Float[Tensor, " N"] | None = None,
    row_sums: Float[Tensor, " M"] | None = None,
) -> Tensor:
    """A B (+ bias) for float32 matrices on the CPU, of any strides. `row_sums` is filled with the sums of A's rows."""
    assert LIBRARY is not None
    result = room(a.shape[0], b.shape[1])
    arrays = (address(a), *a.stride(), address(b), *b.stride(), address(bias), address(result), address(row_sums))
    call = _Product(a.shape[0], a.shape[1], b.shape[1], threads_for(SMALL), *arrays)
    raise_for(LIBRARY.ltc_product(ctypes.byref(call)), {})
    return result


def _check(x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    if x.ndim != 2 or weight.ndim != 2 or 0 in x.shape or 0 in weight.shape:
        got = f"{tuple(x.shape)} and {tuple(weight.shape)}"
        raise UsageError(f"x and weight: expected (M, D) and (N, D) with M, D, N >= 1, got {got}")
    return x.shape[0], x.shape[1], weight.shape[0]


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    M, D, N = _check(x, weight)
    bias = None if bias is None else dense("bias", bias, (N,))
    return product(dense("x", x, (M, D)), dense("weight", weight, (N, D)).t(), bias)


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, with_x: bool, with_weight: bool, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    M, D, N = _check(x, weight)
    gradient = dense("gradient", gradient, (M, N))
    x, weight = dense("x", x, (M, D)), dense("weight", weight, (N, D))
    x_gradient = product(gradient, weight) if with_x else room(0)
    if not with_weight:
        return x_gradient, room(0), gradient.sum(0) if with_bias else room(0)
    bias_gradient = room(N if with_bias else 0)
    weight_gradient = product(gradient.t(), x, row_sums=bias_gradient if with_bias else None)
    return x_gradient, weight_gradient, bias_gradient


def _rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`_forward` for inputs of any number of dimensions."""
    return _forward(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])


def _backward(
    needed: Sequence[bool], gradients: Sequence[Tensor], inputs: Sequence[Any], _: Sequence[Tensor]
) -> tuple[Optional, ...]:
    (gradient,), (x, weight) = gradients, inputs[:2]
    backward = _gradients if access(gradient, x, weight) == Access.direct else _linear_backward
    found = backward(gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1]), weight, *needed)
    return tuple(g.view(t.shape) if n else None for g, n, t in zip(found, needed, (x, weight, found[2]), strict=True))


_KERNEL = Kernel(lambda *inputs: (_rows(*inputs), ()), _backward, F.linear)


_linear: Any = torch.library.custom_op(
    "ltc::linear",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
)
_linear_backward: Any = torch.library.custom_op(
    "ltc::linear_backward",
    _gradients,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor gradient, Tensor x, Tensor weight, bool with_x, bool with_weight, bool with_bias)"
    " -> (Tensor, Tensor, Tensor)",
)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Optional, ...]:
    needed, inputs = ctx.needs_input_grad, ctx.saved_tensors
    if torch.is_grad_enabled():
        return reference_gradients(F.linear, inputs, needed, (gradient,))
    return _backward(needed, (gradient,), inputs, ())


def _gradient_shapes(
    gradient: Tensor, x: Tensor, weight: Tensor, with_x: bool, with_weight: bool, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    to_weight, to_bias = weight.shape if with_weight else 0, weight.shape[0] if with_bias else 0
    return x.new_empty(x.shape if with_x else 0), x.new_empty(to_weight), x.new_empty(to_bias)


_linear.register_fake(lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]))
_linear_backward.register_fake(_gradient_shapes)
_linear.register_autograd(_differentiate, setup_context=_keep)
