"""How a fused kernel becomes a function that autograd, torch.compile and export see.

`Direct` calls a kernel past PyTorch's dispatcher and gives autograd its gradient. `ScanOperator` is a recurrence: its
inputs, of known shapes, begin with drive, x0 and dt; its results are the states after each token. It is registered with
PyTorch as an operator, with its gradient (an operator too) and their shapes.

Kernels know first derivatives. Where a gradient is to be differentiated again (`create_graph=True`), it is taken
through the PyTorch reference instead (`reference_gradients`), so that second derivatives are right too.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.dispatch import Access, access
from ltc_textgen.kernels.library import LIBRARY, SOLVER_CODES, Shape, pointers, raise_for, threads_for
from ltc_textgen.kernels.reference import sequential_scan
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import Membrane, Method

Shapes = Callable[[int, int, int], tuple[tuple[int, ...], ...]]
Optional = Tensor | None

BLOCK = 16
"""Neurons to a multiple of which a tape is padded; kBlock in csrc/recurrence.h."""


def wants_gradient(*tensors: Optional) -> bool:
    """Whether autograd has to know about an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class Kernel(NamedTuple):
    """A kernel with its gradient, as `Direct` calls it.

    Args:
        forward: Inputs -> outputs (a tensor or a tuple), and tensors to keep for the gradient.
        backward: Which inputs need a gradient, gradients of the outputs or None, inputs, what was kept -> gradients of
            the inputs or None.
        reference: Inputs -> outputs, by operations of PyTorch.
    """

    forward: Callable[..., tuple[Any, tuple[Optional, ...]]]
    backward: Callable[..., tuple[Optional, ...]]
    reference: Callable[..., Any]


class Direct(torch.autograd.Function):
    """A kernel that autograd sees and the dispatcher does not. Called as `Direct.apply(kernel, *inputs)`."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, *inputs: Optional) -> Any:
        outputs, kept = kernel.forward(*inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *kept)
        ctx.kernel, ctx.count = kernel, len(inputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Optional) -> Any:
        needed, saved = ctx.needs_input_grad[1:], ctx.saved_tensors
        if all(gradient is None for gradient in gradients):
            return (None,) * (1 + len(needed))
        inputs, kept = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled():
            return (None, *reference_gradients(ctx.kernel.reference, inputs, needed, gradients))
        return (None, *ctx.kernel.backward(needed, gradients, inputs, kept))


def reference_gradients(
    reference: Callable[..., Any],
    inputs: Sequence[Optional],
    needed: Sequence[bool],
    gradients: Sequence[Optional],
) -> tuple[Optional, ...]:
    """Gradients through operations of PyTorch, which can be differentiated again.

    Args:
        reference: Inputs -> outputs.
        inputs: Tensors, as they were in the forward pass.
        needed: Which of them need a gradient.
        gradients: Of the outputs; None for one that does not count.
    """
    # Views, so that an input that was computed from another one does not count twice.
    apart = [t.view_as(t) if t is not None and wanted else t for t, wanted in zip(inputs, needed, strict=True)]
    with torch.autocast("cpu", enabled=False):
        outputs = reference(*apart)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
    leaves = [t for t, wanted in zip(apart, needed, strict=True) if t is not None and wanted]
    if not pairs:
        return (None,) * len(inputs)
    of, weights = [output for output, _ in pairs], [gradient for _, gradient in pairs]
    found = iter(torch.autograd.grad(of, leaves, weights, create_graph=True, allow_unused=True))
    return tuple(next(found) if wanted else None for wanted in needed)


def readable(name: str, gradient: Optional, shape: tuple[int, ...]) -> Optional:
    """A gradient as a kernel can read it; None stays None."""
    if gradient is None:
        return None
    plain = access(gradient) == Access.direct
    return dense(name, gradient if plain else room(*shape).copy_(gradient), shape)


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


Codes = tuple[int, int, bool]
"""A `Method` as operators and the library take it: its solver by number."""


def codes_of(method: Method) -> Codes:
    """A method with its solver by number."""
    return method.steps, SOLVER_CODES[method.solver], method.adaptive


def method_of(codes: Codes) -> Method:
    """The inverse of `codes_of`."""
    solver = next(solver for solver, code in SOLVER_CODES.items() if code == codes[1])
    return Method(codes[0], solver, codes[2])


class ScanOperator:
    """A fused scan with its gradient.

    Args:
        name: The operator is `ltc::<name>_scan`, the functions of the library `ltc_<name>_forward` and `_backward`.
        parameters: Type of the parameters, whose fields are the inputs after drive, x0 and dt, in the order of
            csrc/kernels.h; "mask" is boolean and has no gradient.
        membrane: Makes the membrane of a token in PyTorch (see `reference`).
        shapes: B, T, N -> shape of every input.
        per_stage: Floats per neuron and solver stage that the forward pass keeps for the gradient.
        work: N -> what a stage of a sequence costs, in sigmoids, to know when threads pay.
    """

    def __init__(
        self,
        name: str,
        parameters: Any,
        membrane: Callable[..., Membrane],
        shapes: Shapes,
        *,
        per_stage: int,
        work: Callable[[int], int],
    ) -> None:
        self.name, self.parameters, self.membrane, self.shapes = name, parameters, membrane, shapes
        self.inputs: tuple[str, ...] = ("drive", "x0", "dt", *parameters._fields)
        self.per_stage, self.work = per_stage, work
        fields = pointers(*self.inputs, "states", *(("tape",) if per_stage else ()))
        self.forward_arrays = type("Forward", (ctypes.Structure,), {"_fields_": fields})
        differentiable = [f"{name}_grad" for name in self.inputs if name != "mask"]
        fields = (("forward", self.forward_arrays), *pointers("states_grad", "last_grad", *differentiable))
        self.backward_arrays = type("Backward", (ctypes.Structure,), {"_fields_": fields})
        self._register()

    def __call__(self, *inputs: Tensor, method: Method) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        """States after each token, and the last.

        Raises:
            UsageError: If a dtype, device, shape or value cannot be; the message names expected and got.
        """
        codes, keep = codes_of(method), wants_gradient(*inputs)
        if access(*inputs) != Access.direct:
            states, last, _ = self._operator(*inputs, *codes, keep)
        elif keep:
            states, last = Direct.apply(self._kernel(codes), *inputs)
        else:
            states, last, _ = self.forward(*inputs, *codes, False)
        return states, last

    def reference(self, *inputs: Tensor, method: Method) -> tuple[Tensor, Tensor]:
        """The same in PyTorch."""
        drive, x0, dt, *parameters = inputs
        return sequential_scan(self.membrane, drive, x0, dt, self.parameters(*parameters), method)

    def _kernel(self, codes: Codes) -> Kernel:
        def forward(*inputs: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
            states, last, tape = self.forward(*inputs, *codes, True)
            return (states, last), (states, tape)

        def backward(
            needed: Sequence[bool], gradients: Sequence[Optional], inputs: Sequence[Tensor], kept: Sequence[Tensor]
        ) -> tuple[Optional, ...]:
            return self._gradients(codes, needed, gradients, inputs, kept)

        return Kernel(forward, backward, self._reference(codes))

    def _reference(self, codes: Codes) -> Callable[..., tuple[Tensor, Tensor]]:
        return partial(self.reference, method=method_of(codes))

    def _gradients(
        self,
        codes: Codes,
        needed: Sequence[bool],
        gradients: Sequence[Optional],
        inputs: Sequence[Tensor],
        kept: Sequence[Tensor],
    ) -> tuple[Optional, ...]:
        direct = access(*gradients, *inputs, *kept) == Access.direct
        backward = self.backward if direct else self._gradient
        found = backward(*gradients, *kept, *inputs, *codes, needed[2])
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
        ctx.codes = inputs[len(self.inputs) : -1]

    def _differentiate(self, ctx: Any, states_grad: Any, last_grad: Any, _: Any) -> tuple[Optional, ...]:
        if states_grad is None and last_grad is None:
            return (None,) * (len(self.inputs) + 4)
        needed, (states, tape, *inputs) = ctx.needs_input_grad[: len(self.inputs)], ctx.saved_tensors
        if torch.is_grad_enabled():
            reference = self._reference(ctx.codes)
            gradients = reference_gradients(reference, inputs, needed, (states_grad, last_grad))
        else:
            gradients = self._gradients(ctx.codes, needed, (states_grad, last_grad), inputs, (states, tape))
        return (*gradients, None, None, None, None)
