"""The fused scan of the diagonal coupling on the CPU. Reference: `cells.diagonal`; source: csrc/diagonal.cpp.

What the diagonal scans are given, checked where no compiled code does it.

The fused scan of the full coupling on the CPU. Reference: `cells.full`; source: csrc/full.cpp.

The fused scan of the synaptic coupling on the CPU, and the sums over synapses from the inputs.

Reference: `cells.synaptic`; source: csrc/synaptic.cpp and csrc/synapses.h.
"""

import ctypes
from typing import Any, NamedTuple

import torch

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.autograd import Direct, ScanOperator, address, dense, is_direct, room, wants_gradient
from ltc_textgen.kernels.library import LIBRARY, pointers, raise_for, threads_for
from ltc_textgen.shapes import Bool, Float, Tensor

PRECISIONS = {torch.float32, torch.float64}


class Neurons(NamedTuple):
    """What the membranes of a diagonal layer are made of (see `cells.diagonal`).

    Args:
        self_weight: r_e and r_i.
        reversal: E_e and E_i; the inhibitory synapse pulls towards -E_i.
        capacitance: C > 0.
        leak: g_leak >= 0.
    """

    self_weight: Float[Tensor, "2 N"]
    reversal: Float[Tensor, "2 N"]
    capacitance: Float[Tensor, " N"]
    leak: Float[Tensor, " N"]


class Method(NamedTuple):
    """How a token is integrated.

    Args:
        steps: Sub-steps per token, >= 1.
        solver: How a sub-step is taken.
        adaptive: Whether synapses change the time constants.
    """

    steps: int
    solver: Solver
    adaptive: bool


def check_arguments(drive: Tensor, x0: Tensor, dt: Tensor, neurons: Neurons, steps: int) -> None:
    """Check the shapes, precision and device of what a diagonal scan is given.

    Values are not looked at: on an accelerator that would make the host wait.

    Raises:
        UsageError: Naming the first argument that does not fit, what was expected and what was given.
    """
    if drive.ndim != 3 or 0 in drive.shape or drive.shape[2] % 2:
        raise UsageError(f"drive: expected (B, T, 2 N) with B, T, N >= 1, got {tuple(drive.shape)}")
    if drive.dtype not in PRECISIONS:
        raise UsageError(f"drive: expected float32 or float64, got {drive.dtype}")
    if steps < 1:
        raise UsageError(f"steps: expected 1 or more, got {steps}")
    B, T, N = drive.shape[0], drive.shape[1], drive.shape[2] // 2
    shapes = ((B, N), (B, T), (2, N), (2, N), (N,), (N,))
    for name, tensor, shape in zip(("x0", "dt", *Neurons._fields), (x0, dt, *neurons), shapes, strict=True):
        expected, got = (shape, drive.dtype, drive.device), (tuple(tensor.shape), tensor.dtype, tensor.device)
        if expected != got:
            raise UsageError(f"{name}: expected {', '.join(map(str, expected))}, got {', '.join(map(str, got))}")


DIAGONAL = ScanOperator(
    "diagonal",
    ("drive", "x0", "dt", "self_weight", "reversal", "capacitance", "leak"),
    lambda B, T, N: ((B, T, 2 * N), (B, N), (B, T), (2, N), (2, N), (N,), (N,)),
    per_stage=0,
    work=lambda N: 2 * N,
)


def diagonal_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    neurons: Neurons,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate all tokens in order. float32 tensors on the CPU.

    Args:
        drive: W_e u + b_e and W_i u + b_i, side by side.
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
    return DIAGONAL(drive, x0, dt, *neurons, steps=steps, solver=solver, adaptive=adaptive)


FULL = ScanOperator(
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
    return FULL(drive, x0, dt, *neurons, steps=steps, solver=solver, adaptive=adaptive)


SYNAPTIC = ScanOperator(
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
    return SYNAPTIC(*inputs, steps=steps, solver=solver, adaptive=adaptive)


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
