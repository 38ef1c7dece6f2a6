"""Whether a kernel may run in place of PyTorch's operations: three questions, asked in this order.

1. Is the call observed? Modules answer by `observed` (hooks, replaced or overridden methods), PyTorch itself by
   `access` (function transforms, compilers, tracers, dispatch modes) and `product_dtype` (autocast).
2. Do device and dtype fit? `choose` reads the table `SCANS`, `fits_cpu` holds for every other kernel.
3. Does it pay? `min_tokens` in the table, `product_pays` and `layer_pays`.

One override applies to all of it: the environment variable LTC_KERNELS or the context manager `use`.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from types import FunctionType
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

from ltc_textgen.config import Coupling, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.library import LIBRARY, SOLVER_CODES, WHY_NOT, instruction_set
from ltc_textgen.shapes import Tensor
from ltc_textgen.solvers import SOLVERS

Path = Literal["cpu", "triton", "parallel", "reference"]
Choice = Literal["auto", "cpu", "parallel", "reference"]

_chosen: str = os.environ.get("LTC_KERNELS", "auto")


# 1. Is the call observed?


class Access(IntEnum):
    """How a kernel may be called."""

    reference = 0
    """Not at all: a function transform, forward-mode derivative or ONNX exporter needs PyTorch's own operations."""
    operator = 1
    """As a registered operator: a compiler, tracer or dispatch mode records it, or a tensor has no plain memory."""
    direct = 2
    """Past PyTorch's dispatcher, which costs tens of microseconds, more than a single token of a small layer."""


def access(*tensors: Tensor | None) -> Access:
    """How a kernel may be called with these tensors, in the mode that PyTorch is in."""
    if torch.onnx.is_in_onnx_export():
        return Access.reference
    if torch.compiler.is_compiling():
        return Access.operator
    if is_transformed() or forward_ad._current_level >= 0:
        return Access.reference
    if torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return Access.operator
    return Access.direct if all(_is_plain(tensor) for tensor in tensors) else Access.operator


def is_transformed() -> bool:
    """Inside torch.func.grad, vmap and the like, where values of tensors are unknown."""
    return bool(torch._C._are_functorch_transforms_active())


def _is_plain(tensor: Tensor | None) -> bool:
    """False for subclasses, and for tensors whose memory does not hold their values (lazily negated, or absent)."""
    if tensor is None:
        return True
    return type(tensor) in (Tensor, nn.Parameter) and not (tensor.is_neg() or tensor._is_zerotensor())


def product_dtype() -> torch.dtype:
    """In which dtype matrix products on the CPU are taken: float32, or what autocast says."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


Module = TypeVar("Module", bound=type[nn.Module])

_CALL = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__")
_recorded: dict[type[nn.Module], dict[str, object]] = {}


def record(kind: Module) -> Module:
    """Remember the methods of a module class, so that `changed` notices what is overridden or replaced later.

    A decorator of the classes that kernels stand in for.
    """
    names = dict.fromkeys(_CALL)
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        names |= {name: None for name, value in vars(base).items() if isinstance(value, FunctionType | property)}
    _recorded[kind] = {name: getattr(kind, name) for name in names if name in _CALL or not name.startswith("__")}
    return kind


for _kind in (nn.Linear, nn.RMSNorm, nn.Embedding, nn.ModuleList):
    record(_kind)


def changed(module: nn.Module, kind: type[nn.Module], *names: str) -> bool:
    """Whether methods of a module are not those that `kind` was defined with.

    They may be overridden by a subclass, or replaced on the object or on any of its classes.

    Args:
        module: Any module.
        kind: A class that was recorded.
        names: Methods and properties to compare; all if none are given.
    """
    if not isinstance(module, kind):
        return True
    recorded, own, actual = _recorded[kind], module.__dict__, type(module)
    return any(name in own or getattr(actual, name) is not recorded[name] for name in names or recorded)


def hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, is compiled by itself, or makes its weights in a parametrization."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or module._compiled_call_impl is not None or "parametrizations" in module._modules


def observed(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether anyone observes or has changed what a module computes, so that no kernel may stand in for `kind`.

    A compiler traces hooks itself; there only the methods are compared.
    """
    if torch.compiler.is_compiling():
        return type(module) is not kind or changed(module, kind)
    return bool(nn_module._has_any_global_hook()) or hooked(module) or changed(module, kind)


_SOLVERS = dict(SOLVERS)


def is_standard(solver: Solver) -> bool:
    """Whether a solver is one that the kernels have, and its function was not replaced."""
    return solver in SOLVER_CODES and SOLVERS[solver] is _SOLVERS[solver]


# 2. Do device and dtype fit?


class Scan(NamedTuple):
    """A way to run the recurrence of a layer other than the PyTorch loop.

    Args:
        path: Its name.
        couplings: Layers that have it.
        runs_on: Whether it runs on a device.
        dtypes: Precisions that it has.
        min_tokens: Shortest sequence for which it pays.
    """

    path: Path
    couplings: frozenset[Coupling]
    runs_on: Callable[[torch.device], bool]
    dtypes: frozenset[torch.dtype]
    min_tokens: int = 1


def _has_library(device: torch.device) -> bool:
    return device.type == "cpu" and LIBRARY is not None


def _has_triton(device: torch.device) -> bool:
    return device.type == "cuda" and not triton_problem(device)


def _is_accelerator(device: torch.device) -> bool:
    return device.type not in {"cpu", "meta"}


_EVERY = frozenset({Coupling.diagonal, Coupling.full, Coupling.synaptic})
_DIAGONAL = frozenset({Coupling.diagonal})
_SINGLE, _BOTH = frozenset({torch.float32}), frozenset({torch.float32, torch.float64})

SCANS = (
    Scan("cpu", _EVERY, _has_library, _SINGLE),
    Scan("triton", _DIAGONAL, _has_triton, _BOTH),
    Scan("parallel", _DIAGONAL, _is_accelerator, _BOTH, min_tokens=64),
)
"""The first row that fits is taken; where none does, the PyTorch loop runs ("reference").

Newton's method over time never pays on a CPU, where it does several times the arithmetic of the loop. On an
accelerator the loop starts some 28 device kernels per sub-step and token, Newton's method some 35 per sub-step and
iteration; that row rests on the count and not on a measurement."""


def choose(coupling: Coupling, drive: Tensor) -> Path:
    """Which path the recurrence of a layer takes over a drive (B, T, _).

    Raises:
        UsageError: If LTC_KERNELS is unknown, or asks for the CPU kernels where they cannot run.
    """
    override = _override(drive)
    if override == "reference" or access() == Access.reference:
        return "reference"
    if override == "parallel":
        return "parallel" if coupling in _DIAGONAL else "reference"
    for scan in SCANS if override == "auto" else SCANS[:1]:
        fits = coupling in scan.couplings and drive.dtype in scan.dtypes and scan.runs_on(drive.device)
        if fits and drive.shape[1] >= scan.min_tokens:
            return scan.path
    return "reference"


def fits_cpu(*tensors: Tensor | None) -> bool:
    """Whether the CPU kernels take these tensors: all there, float32 and on the CPU, and nothing against it.

    Raises:
        UsageError: As `choose`.
    """
    for tensor in tensors:
        if tensor is None or tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return False
    return LIBRARY is not None and _override(*tensors) in ("auto", "cpu") and access() != Access.reference


def fits_directly(*tensors: Tensor | None) -> bool:
    """Whether a CPU kernel that is no operator may take these tensors."""
    return access(*tensors) == Access.direct and fits_cpu(*tensors)


def _override(*tensors: Tensor | None) -> str:
    if _chosen not in get_args(Choice):
        raise UsageError(f"LTC_KERNELS: expected one of {', '.join(get_args(Choice))}, got '{_chosen}'")
    if _chosen == "cpu" and LIBRARY is None and all(t is not None and t.is_cpu for t in tensors):
        raise UsageError(f"LTC_KERNELS=cpu, but there are no CPU kernels here: {WHY_NOT}")
    return _chosen


@cache
def triton_problem(device: torch.device) -> str:
    """What a GPU lacks for the Triton kernels; nothing if empty."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is None and (capability := torch.cuda.get_device_capability(device)) < (7, 0):
        return f"compute capability {capability[0]}.{capability[1]}, and Triton needs 7.0"
    return ""


# 3. Does it pay?

PRODUCT = LIBRARY is not None and bool(LIBRARY.ltc_product_pays())
"""Whether our matrix product is faster than PyTorch's on this processor."""

MIN_PRODUCT = 1 << 22
"""Multiplications below which a product is left to PyTorch."""

MAX_PROJECTION = 1 << 20
"""Weights of a projection above which the gradient of them that every thread keeps does not stay in a cache."""


def product_pays(multiplications: int | torch.SymInt) -> bool:
    """Whether our matrix product is faster than PyTorch's for so many multiplications."""
    # An exported program would be bound to batches on one side of MIN_PRODUCT.
    return PRODUCT and not torch.compiler.is_exporting() and bool(multiplications >= MIN_PRODUCT)


def layer_pays(batch: int, tokens: int, weights: int) -> bool:
    """Whether projection and scan of a diagonal layer are faster as one kernel.

    Args:
        batch: B. One thread takes whole sequences, so that they must divide evenly among the threads.
        tokens: T.
        weights: Entries of the projection.
    """
    threads = torch.get_num_threads()
    even = batch % threads == 0 or batch >= 4 * threads
    return even and weights <= MAX_PROJECTION and product_pays(batch * tokens * weights)


@contextmanager
def use(choice: Choice) -> Iterator[None]:
    """Override which kernels run inside a `with`; "reference" is the plain PyTorch loop, which every exporter knows."""
    global _chosen
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


def report() -> dict[str, str]:
    """Which kernels can run here, and why not: one line each, for `ltc doctor`."""
    if LIBRARY is None:
        cpu = f"none: {WHY_NOT}; the slower PyTorch reference runs"
    else:
        threads = torch.get_num_threads() if LIBRARY.ltc_threaded() else 1
        cpu = f"{instruction_set()}, {threads} thread{'s' if threads > 1 else ''}"
    return {"cpu": cpu, "triton": _report_triton(), "override": _chosen}


def _report_triton() -> str:
    if not torch.cuda.is_available():
        return "none: no CUDA device"
    problem = triton_problem(torch.device("cuda"))
    return f"none: {problem}" if problem else "yes"
