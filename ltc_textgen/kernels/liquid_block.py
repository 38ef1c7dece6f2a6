"""A whole liquid block on the CPU as one node of the graph: what `blocks.LiquidBlock` computes, forwards and backwards.

Autograd over the block's thirty small operations costs as much time as its products. Here the same steps follow each
other with nothing between them: norm and convolution, products, scan, gate, product, residual. Sources:
csrc/mixing.cpp, csrc/product.cpp, csrc/diagonal.cpp.
"""

import ctypes
from typing import Any, NamedTuple

import torch

from ltc_textgen.kernels.autograd import address, dense, room
from ltc_textgen.kernels.library import LIBRARY, pointers, raise_for, threads_for
from ltc_textgen.kernels.matmul import PAYS, product
from ltc_textgen.kernels.scans import DIAGONAL
from ltc_textgen.shapes import Float, Tensor

ELEMENT = 4
"""What an element of the mixing or the gate costs, in sigmoids, to know when threads pay."""


class _MixingShape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "T", "D", "K")),
        ("epsilon", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


class _MixingForward(ctypes.Structure):
    _fields_ = pointers("u", "columns", "norm_weight", "weight", "bias", "extended", "scale", "mixed")


class _MixingBackward(ctypes.Structure):
    _fields_ = (
        ("forward", _MixingForward),
        *pointers("grad", "other_grad", "residual_grad", "after_grad", "columns_grad"),
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
        drive: Input weights of the cell, (2N, D), and
        drive_bias: their bias, (2N,).
        feedback: r_e and r_i, (2, N).
        reversal: E_e and E_i, (2, N).
        capacitance: C > 0, (N,).
        leak: g_leak >= 0, (N,).
        gate: Weights of the gate, (N, D), and
        gate_bias: their bias, (N,).
        out: Weights of the way out, (D, N).
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
        steps: Sub-steps per token.
        solver: Its code.
        adaptive: Whether synapses change the time constants.
        half: Whether matrix products are made in bfloat16, as under autocast; their sums are float32.
    """

    epsilon: float
    steps: int
    solver: int
    adaptive: bool
    half: bool


def fused_block(
    u: Float[Tensor, "B T D"],
    columns: Float[Tensor, "B columns D"],
    neurons: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    keep: Float[Tensor, "B _ D"] | None,
    weights: BlockWeights,
    method: BlockMethod,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B columns D"], Float[Tensor, "B N"]]:
    """Run a liquid block over sequences without padding. float32 tensors on the CPU.

    Args:
        u: Inputs.
        columns: Normed inputs of the K - 1 tokens before the first.
        neurons: States before the first token.
        dt: Length of a sub-step of each token.
        keep: What the dropout multiplies the branch with, for each token or for all; None drops nothing.
        weights: Parameters.
        method: How they are used.

    Returns:
        Outputs; columns and states after the last token. All tensors but `keep` are differentiable, once.

    Raises:
        UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
    """
    return _FusedBlock.apply(u, columns, neurons, dt, keep, method, *weights)


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        columns: Tensor,
        neurons: Tensor,
        dt: Tensor,
        keep: Tensor | None,
        method: BlockMethod,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = BlockWeights(*given)
        (B, T), (D, K) = dt.shape, w.conv.shape
        w = w.dense(D, w.out.shape[1], K)
        u, columns = dense("u", u, (B, T, D)), dense("columns", columns, (B, K - 1, D))
        extended, scale, mixed = room(B, K - 1 + T, D), room(B, T), room(B, T, D)
        shape = _MixingShape(B, T, D, K, method.epsilon, threads_for(ELEMENT * u.numel()))
        call = _MixingForward(*map(address, (u, columns, w.norm, w.conv, w.conv_bias, extended, scale, mixed)))
        _run("ltc_mixing_forward", ctypes.byref(shape), ctypes.byref(call))
        flat = mixed.view(-1, D)
        drive = _times(method.half, flat, w.drive.t(), w.drive_bias).view(B, T, -1)
        scan = (drive, neurons, dt, w.feedback, w.reversal, w.capacitance, w.leak)
        states, last, _ = DIAGONAL.forward(*scan, method.steps, method.solver, method.adaptive, False)
        z = _times(method.half, flat, w.gate.t(), w.gate_bias)
        gated = torch.empty_like(z)
        gate = _Gate(address(states), address(z), address(gated))
        _run("ltc_gate_forward", ctypes.c_int64(z.numel()), threads_for(ELEMENT * z.numel()), ctypes.byref(gate))
        branch = _times(method.half, gated, w.out.t()).view(B, T, D)
        out = branch.add_(u) if keep is None else torch.addcmul(u, branch, keep)
        ctx.set_materialize_grads(False)
        ctx.method, ctx.shape = method, shape
        ctx.save_for_backward(u, columns, neurons, dt, keep, extended, scale, mixed, drive, states, z, gated, *w)
        return out, extended[:, T:].clone(), last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, out_grad: Tensor | None, after_grad: Tensor | None, last_grad: Tensor | None) -> Any:
        u, columns, neurons, dt, keep, extended, scale, mixed, drive, states, z, gated, *given = ctx.saved_tensors
        w, D, N = BlockWeights(*given), u.shape[-1], z.shape[1]
        half = ctx.method.half
        out_grad = torch.zeros_like(u) if out_grad is None else out_grad.contiguous()
        branch_grad = (out_grad if keep is None else out_grad * keep).view(-1, D)
        out_weight_grad = _times(half, branch_grad.t(), gated)
        gated_grad = _times(half, branch_grad, w.out)
        states_grad, z_grad = torch.empty_like(states), torch.empty_like(z)
        gate = _Gate(*map(address, (states, z, gated_grad, states_grad, z_grad)))
        _run("ltc_gate_backward", ctypes.c_int64(z.numel()), threads_for(ELEMENT * z.numel()), ctypes.byref(gate))
        scan = (drive, neurons, dt, w.feedback, w.reversal, w.capacitance, w.leak)
        method = (ctx.method.steps, ctx.method.solver, ctx.method.adaptive)
        with_dt = ctx.needs_input_grad[3]
        drive_grad, neurons_grad, dt_grad, *cell_grads = DIAGONAL.backward(
            states_grad, last_grad, states, room(0), *scan, *method, with_dt
        )
        flat, drive_grad = mixed.view(-1, D), drive_grad.view(-1, 2 * N)
        mixed_grad, other_grad = _times(half, drive_grad, w.drive), _times(half, z_grad, w.gate)
        u_grad, norm_grad = torch.empty_like(u), torch.empty_like(w.norm)
        conv_grad, conv_bias_grad = torch.empty_like(w.conv), torch.empty_like(w.conv_bias)
        columns_grad = torch.empty_like(columns) if ctx.needs_input_grad[1] else None
        after_grad = None if after_grad is None else after_grad.contiguous()
        forward = _MixingForward(*map(address, (u, columns, w.norm, w.conv, w.conv_bias, extended, scale)))
        call = _MixingBackward(
            forward,
            *map(address, (mixed_grad, other_grad, out_grad, after_grad, columns_grad)),
            *map(address, (u_grad, norm_grad, conv_grad, conv_bias_grad)),
        )
        _run("ltc_mixing_backward", ctypes.byref(ctx.shape), ctypes.byref(call))
        return (
            *(u_grad, columns_grad, neurons_grad, dt_grad if with_dt else None, None, None),
            *(norm_grad, conv_grad, conv_bias_grad),
            *(*_weight_gradients(half, drive_grad, flat), *cell_grads),
            *(*_weight_gradients(half, z_grad, flat), out_weight_grad),
        )


def _run(name: str, *arguments: Any) -> None:
    raise_for(getattr(LIBRARY, name)(*arguments), {})


def _weight_gradients(half: bool, pulled: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a linear map's weights and bias."""
    if half or not PAYS:
        return _times(half, pulled.t(), inputs), pulled.sum(0)
    sums = room(pulled.shape[1])
    return product(pulled.t(), inputs, row_sums=sums), sums


def _times(half: bool, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A B (+ bias), by whichever product is faster here."""
    if half:
        result = (a.bfloat16() @ b.bfloat16()).float()
        return result if bias is None else result.add_(bias)
    if PAYS:
        return product(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)
