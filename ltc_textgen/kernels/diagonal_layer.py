"""A diagonal layer on the CPU, input projection and scan as one node of the graph and one pass over the tokens.

Drives are made, scanned and turned into gradients a hundred tokens at a time, while a core has them in its cache.
Reference: a linear map and `scans.diagonal_scan`; source: csrc/layer.cpp.
"""

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch.nn import functional as F

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.autograd import (
    Codes,
    Direct,
    Kernel,
    Optional,
    address,
    codes_of,
    dense,
    method_of,
    readable,
    room,
    wants_gradient,
)
from ltc_textgen.kernels.library import LIBRARY, Shape, pointers, raise_for, threads_for
from ltc_textgen.kernels.reference import DiagonalParameters
from ltc_textgen.kernels.scans import DIAGONAL
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import Method


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


class Inputs(NamedTuple):
    """What the kernel is given, in the order of its gradients; gradients have the same names."""

    u: Tensor
    x0: Tensor
    dt: Tensor
    weight: Tensor
    bias: Tensor
    feedback: Tensor
    reversal: Tensor
    capacitance: Tensor
    leak: Tensor

    def checked(self) -> "Inputs":
        """The same as a kernel can read them.

        Raises:
            UsageError: If a shape, dtype or device is another one; the message names expected and got.
        """
        u, x0 = self.u, self.x0
        if u.ndim != 3 or x0.ndim != 2 or 0 in u.shape or 0 in x0.shape:
            got = f"{tuple(u.shape)} and {tuple(x0.shape)}"
            raise UsageError(f"u and x0: expected (B, T, D) and (B, N) with B, T, D, N >= 1, got {got}")
        (B, T, D), N = u.shape, x0.shape[1]
        shapes = ((B, T, D), (B, N), (B, T), (2 * N, D), (2 * N,), (2, N), (2, N), (N,), (N,))
        named = zip(self._fields, self, shapes, strict=True)
        return Inputs(*(dense(name, tensor, shape) for name, tensor, shape in named))

    def scan(self, states: Tensor) -> Any:
        """The arrays of the scan within the layer, whose drive exists for a few tokens at a time."""
        arrays = (self.x0, self.dt, self.feedback, self.reversal, self.capacitance, self.leak, states)
        return DIAGONAL.forward_arrays(None, *map(address, arrays))

    def shape(self, codes: Codes) -> Shape:
        """Sizes and method; threads by the work of the projection."""
        B, T, _ = self.u.shape
        shape = DIAGONAL.shape((B, T, self.x0.shape[1]), *codes)
        shape.threads = threads_for(B * T * self.weight.numel())
        return shape


def fused_layer(
    u: Float[Tensor, "B T D"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    weight: Float[Tensor, "two_N D"],
    bias: Float[Tensor, " two_N"],
    parameters: DiagonalParameters,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Run a diagonal layer over sequences. float32 tensors on the CPU.

    Args:
        u: Inputs.
        x0: States before the first token.
        dt: Length of a sub-step of each token, >= 0 and finite. Zero leaves the state as it is.
        weight: W_e over W_i.
        bias: b_e and b_i.
        parameters: Of the neurons.
        method: How a token is integrated.

    Returns:
        States after each token, and the last. All tensors are differentiable.

    Raises:
        UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
    """
    inputs, codes = Inputs(u, x0, dt, weight, bias, *parameters), codes_of(method)
    if not wants_gradient(*inputs):
        return _run(codes, *inputs, keep=False)[0]
    kernel = Kernel(partial(_run, codes), partial(_gradients, codes), partial(_reference, codes))
    return Direct.apply(kernel, *inputs)


def _reference(
    codes: Codes, u: Tensor, x0: Tensor, dt: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor
) -> Any:
    return DIAGONAL.reference(F.linear(u, weight, bias), x0, dt, *parameters, method=method_of(codes))


def _run(codes: Codes, *tensors: Tensor, keep: bool = True) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """States and last, and what the gradient needs: the states and the drives."""
    given = Inputs(*tensors).checked()
    shape, D = given.shape(codes), given.u.shape[2]
    states = room(shape.B, shape.T, shape.N)
    drive = room(shape.B, shape.T, 2 * shape.N) if keep else None
    call = _Forward(given.scan(states), D, *map(address, (given.u, given.weight, given.bias, drive)))
    assert LIBRARY is not None
    status = LIBRARY.ltc_layer_forward(ctypes.byref(shape), ctypes.byref(call))
    raise_for(status, given._asdict())
    return (states, states[:, -1].clone()), () if drive is None else (states, drive)


def _gradients(
    codes: Codes,
    needed: Sequence[bool],
    gradients: Sequence[Optional],
    inputs: Sequence[Tensor],
    kept: Sequence[Tensor],
) -> tuple[Optional, ...]:
    given, wanted = Inputs(*inputs).checked(), Inputs(*needed)  # type: ignore[arg-type]
    states, drive = kept
    states_grad = readable("gradient of states", gradients[0], tuple(states.shape))
    last_grad = readable("gradient of last", gradients[1], tuple(given.x0.shape))
    found = {name: room(*tensor.shape) for name, tensor in given._asdict().items()}
    if not wanted.u:
        del found["u"]
    if not wanted.dt:
        del found["dt"]
    if not (wanted.weight or wanted.bias):
        del found["weight"], found["bias"]
    to = {name: address(found.get(name)) for name in Inputs._fields}
    of_scan = [to[name] for name in ("x0", "dt", *DiagonalParameters._fields)]
    scan = DIAGONAL.backward_arrays(given.scan(states), address(states_grad), address(last_grad), None, *of_scan)
    forward = _Forward(given.scan(states), given.u.shape[2], *map(address, (given.u, given.weight, None, drive)))
    shape, call = given.shape(codes), _Backward(scan, forward, to["u"], to["weight"], to["bias"])
    assert LIBRARY is not None
    raise_for(LIBRARY.ltc_layer_backward(ctypes.byref(shape), ctypes.byref(call)), {})
    return tuple(found[name] if want else None for name, want in zip(Inputs._fields, needed, strict=True))
