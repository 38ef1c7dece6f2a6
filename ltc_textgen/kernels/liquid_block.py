"""A whole liquid block on the CPU as one node of the graph: what `blocks.LiquidBlock` computes, forwards and backwards.

Autograd over the block's thirty small operations costs as much time as its products. Here the same steps follow each
other with nothing between them: norm and convolution, products, scan, gate, product, residual. Sources:
csrc/mixing.cpp, csrc/product.cpp, csrc/diagonal.cpp.
"""

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ltc_textgen.kernels import dispatch
from ltc_textgen.kernels.autograd import Direct, Kernel, Optional, address, codes_of, dense, room
from ltc_textgen.kernels.library import LIBRARY, pointers, raise_for, threads_for
from ltc_textgen.kernels.matmul import product
from ltc_textgen.kernels.reference import DiagonalParameters
from ltc_textgen.kernels.scans import DIAGONAL
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import Method

ELEMENT = 4
"""What an element of the mixing or the gate costs, in sigmoids, to know when threads pay."""


class _MixingShape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "T", "D", "K")),
        ("epsilon", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


class _MixingForward(ctypes.Structure):
    _fields_ = pointers("u", "conv_state", "norm_weight", "weight", "bias", "extended", "scale", "mixed")


class _MixingBackward(ctypes.Structure):
    _fields_ = (
        ("forward", _MixingForward),
        *pointers("grad", "other_grad", "residual_grad", "after_grad", "conv_state_grad"),
        *pointers("u_grad", "norm_grad", "weight_grad", "bias_grad"),
    )


class _Gate(ctypes.Structure):
    _fields_ = pointers("y", "z", "gated", "y_grad", "z_grad")


class BlockWeights(NamedTuple):
    """Parameters of a block, as its mathematics uses them.

    Args:
        norm: Weight of the RMSNorm, (D,).
        conv: Taps of the convolution, (D, K), and
        conv_bias: its bias, (D,).
        drive: Input weights of the layer, (2N, D), and
        drive_bias: their bias, (2N,).
        feedback: r_e and r_i, (2, N).
        reversal: E_e and E_i, (2, N).
        capacitance: C > 0, (N,).
        leak: g_leak >= 0, (N,).
        gate: Weights of the gate, (N, D), and
        gate_bias: their bias, (N,).
        out: Weights of the output projection, (D, N).
    """

    norm: Tensor
    conv: Tensor
    conv_bias: Tensor
    drive: Tensor
    drive_bias: Tensor
    feedback: Tensor
    reversal: Tensor
    capacitance: Tensor
    leak: Tensor
    gate: Tensor
    gate_bias: Tensor
    out: Tensor

    def dense(self, D: int, N: int, K: int, where: str = "") -> "BlockWeights":
        """The same as a kernel can read them.

        Args:
            D: Width.
            N: Neurons.
            K: Taps.
            where: What an error says after the name of a parameter.

        Raises:
            UsageError: If a shape, dtype or device is another one; the message names expected and got.
        """
        shapes = ((D,), (D, K), (D,), (2 * N, D), (2 * N,), (2, N), (2, N), (N,), (N,), (N, D), (N,), (D, N))
        named = zip(self._fields, self, shapes, strict=True)
        return BlockWeights(*(dense(f"{name}{where}", tensor, shape) for name, tensor, shape in named))


class BlockMethod(NamedTuple):
    """What a block does with its parameters.

    Args:
        epsilon: Of the norm.
        token: How a token is integrated.
        half: Whether matrix products are made in bfloat16, as under autocast; their sums are float32.
    """

    epsilon: float
    token: Method
    half: bool


class Inputs(NamedTuple):
    """What the kernel is given, in the order of its gradients, before the weights."""

    u: Tensor
    conv_state: Tensor
    neurons: Tensor
    dt: Tensor
    keep: Tensor | None


class Kept(NamedTuple):
    """Intermediate results that the gradient needs."""

    extended: Tensor
    scale: Tensor
    mixed: Tensor
    drive: Tensor
    states: Tensor
    z: Tensor
    gated: Tensor


def fused_block(
    u: Float[Tensor, "B T D"],
    conv_state: Float[Tensor, "B columns D"],
    neurons: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    keep: Float[Tensor, "B _ D"] | None,
    weights: BlockWeights,
    method: BlockMethod,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B columns D"], Float[Tensor, "B N"]]:
    """Run a liquid block over sequences without padding. float32 tensors on the CPU.

    Args:
        u: Inputs.
        conv_state: Normed inputs of the K - 1 tokens before the first.
        neurons: States before the first token.
        dt: Length of a sub-step of each token.
        keep: What the dropout multiplies the branch with, for each token or for all; None drops nothing.
        weights: Parameters.
        method: How they are used.

    Returns:
        Outputs; state of the convolution and of the neurons after the last token. All tensors are differentiable.

    Raises:
        UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
    """
    kernel = Kernel(partial(_forward, method), partial(_backward, method), partial(_reference, method))
    return Direct.apply(kernel, u, conv_state, neurons, dt, keep, *weights)


def _reference(method: BlockMethod, *tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The block in operations of PyTorch."""
    (u, conv_state, neurons, dt, keep), w = tensors[:5], BlockWeights(*tensors[5:])
    T, half = u.shape[1], method.half
    extended = torch.cat([conv_state, F.rms_norm(u, w.norm.shape, w.norm, method.epsilon)], dim=1)
    mixed = w.conv_bias.expand_as(u)
    for k in range(w.conv.shape[1]):
        mixed = torch.addcmul(mixed, extended[:, k : k + T], w.conv[:, k])
    flat = mixed.flatten(0, 1)
    drive = _plain_product(half, flat, w.drive.t(), w.drive_bias).unflatten(0, u.shape[:2])
    scan = (drive, neurons, dt, w.feedback, w.reversal, w.capacitance, w.leak)
    states, last = DIAGONAL.reference(*scan, method=method.token)
    gated = states.flatten(0, 1) * F.silu(_plain_product(half, flat, w.gate.t(), w.gate_bias))
    branch = _plain_product(half, gated, w.out.t()).unflatten(0, u.shape[:2])
    return u + (branch if keep is None else branch * keep), extended[:, T:], last


def _forward(method: BlockMethod, *tensors: Any) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """Outputs and states, and what the gradient needs."""
    given, w = Inputs(*tensors[:5]), BlockWeights(*tensors[5:])
    (B, T), (D, K) = given.dt.shape, w.conv.shape
    w = w.dense(D, w.out.shape[1], K)
    u, conv_state = dense("u", given.u, (B, T, D)), dense("conv_state", given.conv_state, (B, K - 1, D))
    extended, scale, mixed = room(B, K - 1 + T, D), room(B, T), room(B, T, D)
    call = _MixingForward(*map(address, (u, conv_state, w.norm, w.conv, w.conv_bias, extended, scale, mixed)))
    _run("ltc_mixing_forward", ctypes.byref(_mixing_shape(method, u, K)), ctypes.byref(call))
    flat = mixed.view(-1, D)
    drive = _product(method.half, flat, w.drive.t(), w.drive_bias).view(B, T, -1)
    scan = (drive, given.neurons, given.dt, w.feedback, w.reversal, w.capacitance, w.leak)
    states, last, _ = DIAGONAL.forward(*scan, *codes_of(method.token), False)
    z = _product(method.half, flat, w.gate.t(), w.gate_bias)
    gated = torch.empty_like(z)
    _run_gate("ltc_gate_forward", states, z, gated)
    branch = _product(method.half, gated, w.out.t()).view(B, T, D)
    out = branch.add_(u) if given.keep is None else torch.addcmul(u, branch, given.keep)
    return (out, extended[:, T:].clone(), last), Kept(extended, scale, mixed, drive, states, z, gated)


def _backward(
    method: BlockMethod,
    needed: Sequence[bool],
    gradients: Sequence[Optional],
    tensors: Sequence[Any],
    kept: Sequence[Tensor],
) -> tuple[Optional, ...]:
    """Gradients of inputs and weights: through out, gate and scan, then through the products and the mixing."""
    given, k, half = Inputs(*tensors[:5]), Kept(*kept), method.half
    w = BlockWeights(*tensors[5:]).dense(given.u.shape[-1], k.z.shape[1], tensors[6].shape[1])
    out_grad, after_grad, last_grad = gradients
    out_grad = torch.zeros_like(k.mixed) if out_grad is None else out_grad.contiguous()
    branch_grad = (out_grad if given.keep is None else out_grad * given.keep).view(-1, out_grad.shape[-1])
    states_grad, z_grad = torch.empty_like(k.states), torch.empty_like(k.z)
    _run_gate("ltc_gate_backward", k.states, k.z, _product(half, branch_grad, w.out), states_grad, z_grad)
    scan = (k.drive, given.neurons, given.dt, w.feedback, w.reversal, w.capacitance, w.leak)
    drive_grad, *of_scan = DIAGONAL.backward(
        states_grad, last_grad, k.states, room(0), *scan, *codes_of(method.token), needed[3]
    )
    found = dict(zip(("neurons", "dt", *DiagonalParameters._fields), of_scan, strict=True))
    flat, drive_grad = k.mixed.view(-1, out_grad.shape[-1]), drive_grad.view(-1, k.drive.shape[-1])
    found["drive"], found["drive_bias"] = _weight_gradients(half, drive_grad, flat)
    found["gate"], found["gate_bias"] = _weight_gradients(half, z_grad, flat)
    found["out"] = _product(half, branch_grad.t(), k.gated)
    mixed_grads = _product(half, drive_grad, w.drive), _product(half, z_grad, w.gate)
    after_grad = None if after_grad is None else after_grad.contiguous()
    found |= _mixing_gradients(method, given, w, k, (*mixed_grads, out_grad, after_grad))
    names = (*Inputs._fields, *BlockWeights._fields)
    return tuple(found[name] if wanted else None for name, wanted in zip(names, needed, strict=True))


def _mixing_gradients(
    method: BlockMethod,
    given: Inputs,
    w: BlockWeights,
    kept: Kept,
    gradients: tuple[Tensor, Tensor, Tensor, Optional],
) -> dict[str, Tensor]:
    """Gradients of what the mixing (norm and convolution) is made from, by name.

    Args:
        method: As in `fused_block`.
        given: Inputs of the block.
        w: Its weights.
        kept: What the forward pass kept.
        gradients: Two of the mixed inputs, which are added up, of the residual, and of the state after the last token.
    """
    inputs = {"u": given.u.contiguous(), "conv_state": given.conv_state.contiguous()}
    weights = {"norm": w.norm, "conv": w.conv, "conv_bias": w.conv_bias}
    found = {name: torch.empty_like(tensor) for name, tensor in (inputs | weights).items()}
    forward = _MixingForward(*map(address, (*inputs.values(), *weights.values(), kept.extended, kept.scale)))
    to = [address(found[name]) for name in ("conv_state", "u", *weights)]
    shape = _mixing_shape(method, given.u, w.conv.shape[1])
    call = _MixingBackward(forward, *map(address, gradients), *to)
    _run("ltc_mixing_backward", ctypes.byref(shape), ctypes.byref(call))
    return found


def _mixing_shape(method: BlockMethod, u: Tensor, taps: int) -> _MixingShape:
    return _MixingShape(*u.shape, taps, method.epsilon, threads_for(ELEMENT * u.numel()))


def _run_gate(name: str, states: Tensor, z: Tensor, *more: Tensor) -> None:
    call = _Gate(*map(address, (states, z, *more)))
    _run(name, ctypes.c_int64(z.numel()), threads_for(ELEMENT * z.numel()), ctypes.byref(call))


def _run(name: str, *arguments: Any) -> None:
    raise_for(getattr(LIBRARY, name)(*arguments), {})


def _weight_gradients(half: bool, gradient: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a linear map's weights and bias."""
    if half or not dispatch.PRODUCT:
        return _product(half, gradient.t(), inputs), gradient.sum(0)
    sums = room(gradient.shape[1])
    return product(gradient.t(), inputs, row_sums=sums), sums


def _product(half: bool, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A B (+ bias), by whichever product is faster here."""
    if not half and dispatch.PRODUCT:
        return product(a, b, bias)
    return _plain_product(half, a, b, bias)


def _plain_product(half: bool, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A B (+ bias) by PyTorch."""
    if half:
        result = (a.bfloat16() @ b.bfloat16()).float()
        return result if bias is None else result + bias
    return a @ b if bias is None else torch.addmm(bias, a, b)
