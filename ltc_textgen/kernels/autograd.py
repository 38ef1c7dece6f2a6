"""How a fused scan becomes an operator that autograd, torch.compile and export see.

All scans have one form: inputs of known shapes, the first three of them drive, x0 and dt; states after each token out.
`ScanOperator` registers such a kernel with PyTorch: the operator, its gradient (an operator too), and their shapes.
"""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.library import LIBRARY, SOLVER_CODES, Shape, pointers, raise_for, threads_for
from ltc_textgen.shapes import Float, Tensor

Shapes = Callable[[int, int, int], tuple[tuple[int, ...], ...]]

BLOCK = 16
"""Neurons to a multiple of which a tape is padded; kBlock in csrc/recurrence.h."""


def is_direct(*tensors: Tensor) -> bool:
    """Whether a kernel may be called directly, past PyTorch's dispatcher.

    The way through the dispatcher costs tens of microseconds, more than the single token of a decoder; through an
    autograd formula more than a hundred. It is needed only where someone looks on (a compiler or tracer, a function
    transform, a dispatch mode), and for tensors whose memory does not hold their values (lazily negated, or zeros
    without memory).
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) and not (t.is_neg() or t._is_zerotensor()) for t in tensors)


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd has to know about an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class Direct(torch.autograd.Function):
    """A kernel with its gradient where `is_direct`: autograd sees it, the dispatcher does not.

    Called as `Direct.apply(forward, backward, *inputs)`:

    * forward(*inputs) -> outputs, tensors to keep
    * backward(needed, gradients of the outputs or None, *kept) -> gradients of the inputs or None
    """

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, *inputs: Tensor | None) -> Any:
        outputs, kept = forward(*inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.pull = backward
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        if all(gradient is None for gradient in gradients):
            return (None,) * len(ctx.needs_input_grad)
        return (None, None, *ctx.pull(ctx.needs_input_grad[2:], gradients, *ctx.saved_tensors))


def dense(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """`tensor` as a kernel can read it: of this shape and dtype, on the CPU, without gaps.

    Raises:
        UsageError: If it is another tensor; the message names expected and got.
    """
    fits = tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.layout == torch.strided
    if tensor.shape != shape or not fits:
        layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
        got = f"{tuple(tensor.shape)} {tensor.dtype}{layout} on {tensor.device}"
        raise UsageError(f"{name}: expected {shape} {dtype} on cpu, got {got}")
    return tensor.contiguous()


def room(*shape: int) -> Tensor:
    """Memory for what a kernel writes, whatever PyTorch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def address(tensor: Tensor | None) -> int | None:
    """Where its values are; None stays None."""
    return None if tensor is None else tensor.data_ptr()


class ScanOperator:
    """A fused scan with its gradient.

    Args:
        name: The operator is `ltc::<name>_scan`, the functions of the library `ltc_<name>_forward` and `_backward`.
        inputs: Names of the inputs, as in csrc/kernels.h; "mask" is boolean and has no gradient.
        shapes: B, T, N -> shape of every input.
        per_stage: Floats per neuron and solver stage that the forward pass keeps for the gradient.
        work: N -> what a stage of a sequence costs, in sigmoids, to know when threads pay.
    """

    def __init__(
        self,
        name: str,
        inputs: tuple[str, ...],
        shapes: Shapes,
        *,
        per_stage: int,
        work: Callable[[int], int],
    ) -> None:
        self.name, self.inputs, self.shapes = name, inputs, shapes
        self.per_stage, self.work = per_stage, work
        fields = pointers(*inputs, "states", *(("tape",) if per_stage else ()))
        self.forward_arrays = type("Forward", (ctypes.Structure,), {"_fields_": fields})
        differentiable = [f"{name}_grad" for name in inputs if name != "mask"]
        fields = (("forward", self.forward_arrays), *pointers("states_grad", "last_grad", *differentiable))
        self.backward_arrays = type("Backward", (ctypes.Structure,), {"_fields_": fields})
        self._register()

    def __call__(
        self, *inputs: Tensor, steps: int, solver: Solver, adaptive: bool
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        """States after each token, and the last.

        Raises:
            UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
        """
        code = SOLVER_CODES[solver]
        method, keep = (steps, code, adaptive), wants_gradient(*inputs)
        if not is_direct(*inputs):
            states, last, _ = self._operator(*inputs, *method, keep)
        elif keep:
            states, last = Direct.apply(partial(self._forward_kept, method), partial(self._pull, method), *inputs)
        else:
            states, last, _ = self.forward(*inputs, *method, False)
        return states, last

    def _forward_kept(self, method: tuple[Any, ...], *inputs: Tensor) -> tuple[Any, ...]:
        states, last, tape = self.forward(*inputs, *method, True)
        return (states, last), (states, tape, *inputs)

    def _pull(self, method: tuple[Any, ...], needed: Any, gradients: Any, *kept: Tensor) -> tuple[Tensor | None, ...]:
        direct = is_direct(*kept, *(gradient for gradient in gradients if gradient is not None))
        backward = self.backward if direct else self._gradient
        found = backward(*gradients, *kept, *method, needed[2])
        return tuple(g if n else None for g, n in zip(found, needed, strict=True))

    def _register(self) -> None:
        tensors = ", ".join(f"Tensor {name}" for name in self.inputs)
        method = "int steps, int solver, bool adaptive"
        options: dict[str, Any] = {"mutates_args": (), "device_types": "cpu"}
        schema = f"({tensors}, {method}, bool keep) -> (Tensor states, Tensor last, Tensor tape)"
        self._operator: Any = torch.library.custom_op(f"ltc::{self.name}_scan", self.forward, schema=schema, **options)
        results = ", ".join("Tensor" for _ in self.inputs)
        schema = (
            f"(Tensor? states_grad, Tensor? last_grad, Tensor states, Tensor tape, {tensors}, {method}, bool with_dt)"
        )
        self._gradient: Any = torch.library.custom_op(
            f"ltc::{self.name}_scan_backward", self.backward, schema=f"{schema} -> ({results})", **options
        )
        self._operator.register_fake(self._forward_shapes)
        self._gradient.register_fake(self._backward_shapes)
        self._operator.register_autograd(self._differentiate, setup_context=self._keep)

    def _arrays(self, inputs: tuple[Tensor, ...], sizes: tuple[int, int, int]) -> list[Tensor]:
        checked = []
        for name, tensor, shape in zip(self.inputs, inputs, self.shapes(*sizes), strict=True):
            checked.append(dense(name, tensor, shape, torch.bool if name == "mask" else torch.float32))
        return checked

    def _sizes(self, inputs: tuple[Tensor, ...]) -> tuple[int, int, int]:
        drive, x0 = inputs[0], inputs[1]
        if drive.ndim != 3 or x0.ndim != 2 or 0 in drive.shape or 0 in x0.shape:
            got = f"{tuple(drive.shape)} and {tuple(x0.shape)}"
            raise UsageError(f"drive and x0: expected (B, T, _) and (B, N) with B, T, N >= 1, got {got}")
        return drive.shape[0], drive.shape[1], x0.shape[1]

    def shape(self, sizes: tuple[int, int, int], steps: int, solver: int, adaptive: bool) -> Shape:
        """B, T, N and the method as a kernel takes them.

        Raises:
            UsageError: If steps or the code of the solver cannot be.
        """
        if not 1 <= steps < 2**31:
            raise UsageError(f"steps: expected 1 or more, got {steps}")
        if solver not in SOLVER_CODES.values():
            raise UsageError(f"solver: expected one of {list(SOLVER_CODES.values())}, got {solver}")
        B, T, N = sizes
        return Shape(B, T, N, steps, solver, adaptive, threads_for(B * T * steps * self.work(N)))

    def _tape_shape(self, sizes: tuple[Any, ...], steps: int, solver: int) -> tuple[Any, ...]:
        stages = steps * (4 if solver == SOLVER_CODES[Solver.runge_kutta] else 1)
        return (sizes[0], sizes[1], stages, self.per_stage, (sizes[2] + BLOCK - 1) // BLOCK * BLOCK)

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The kernel itself, unknown to autograd: inputs, steps, solver code, adaptive, keep -> states, last, tape."""
        *inputs, steps, solver, adaptive, keep = arguments
        sizes = self._sizes(tuple(inputs))
        arrays = self._arrays(tuple(inputs), sizes)
        shape = self.shape(sizes, steps, solver, adaptive)
        states = room(*sizes)
        tape = room(*self._tape_shape(sizes, steps, solver)) if keep and self.per_stage else room(0)
        call = self.forward_arrays(*map(address, arrays), address(states))
        if self.per_stage and keep:
            call.tape = address(tape)
        run = getattr(LIBRARY, f"ltc_{self.name}_forward")
        self._check(run(ctypes.byref(shape), ctypes.byref(call)), inputs)
        return states, states[:, -1].clone(), tape

    def backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Its gradients: of states, of last, states, tape, inputs, steps, solver code, adaptive, with_dt."""
        states_grad, last_grad, states, tape, *inputs, steps, solver, adaptive, with_dt = arguments
        sizes = self._sizes(tuple(inputs))
        arrays = self._arrays(tuple(inputs), sizes)
        shape = self.shape(sizes, steps, solver, adaptive)
        states = dense("states", states, sizes)
        if self.per_stage:
            tape = dense("tape", tape, self._tape_shape(sizes, steps, solver))
        if states_grad is not None:
            states_grad = dense("gradient of states", states_grad, sizes)
        if last_grad is not None:
            last_grad = dense("gradient of last", last_grad, (sizes[0], sizes[2]))
        gradients = [room(*self._gradient_shape(i, arrays, with_dt)) for i in range(len(arrays))]
        wanted = [None if g.numel() == 0 else g for g, n in zip(gradients, self.inputs, strict=True) if n != "mask"]
        forward = self.forward_arrays(*map(address, arrays), address(states))
        if self.per_stage:
            forward.tape = address(tape)
        call = self.backward_arrays(forward, address(states_grad), address(last_grad), *map(address, wanted))
        run = getattr(LIBRARY, f"ltc_{self.name}_backward")
        self._check(run(ctypes.byref(shape), ctypes.byref(call)), inputs)
        return tuple(gradients)

    def _gradient_shape(self, index: int, inputs: Any, with_dt: bool) -> Any:
        name = self.inputs[index]
        return (0,) if name == "mask" or (name == "dt" and not with_dt) else inputs[index].shape

    def _check(self, status: int, inputs: list[Tensor]) -> None:
        if status:
            raise_for(status, dict(zip(self.inputs, inputs, strict=True)))

    def _forward_shapes(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        drive, x0, *_, steps, solver, _, keep = arguments
        sizes = (drive.shape[0], drive.shape[1], x0.shape[1])
        tape = self._tape_shape(sizes, steps, solver) if keep and self.per_stage else (0,)
        return drive.new_empty(sizes), x0.new_empty(x0.shape), drive.new_empty(tape)

    def _backward_shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        _, _, states, _, *inputs, _, _, _, with_dt = arguments
        return tuple(states.new_empty(self._gradient_shape(i, inputs, with_dt)) for i in range(len(inputs)))

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[0], output[2], *inputs[: len(self.inputs)])
        ctx.method = inputs[len(self.inputs) : -1]

    def _differentiate(self, ctx: Any, states_grad: Any, last_grad: Any, _: Any) -> tuple[Tensor | None, ...]:
        if states_grad is None and last_grad is None:
            return (None,) * (len(self.inputs) + 4)
        needed = ctx.needs_input_grad[: len(self.inputs)]
        gradients = self._pull(ctx.method, needed, (states_grad, last_grad), *ctx.saved_tensors)
        return (*gradients, None, None, None, None)
