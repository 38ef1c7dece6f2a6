"""Fused kernels and the choice among them.

Every kernel has the signature of a readable reference, which is what `cells` and `solvers` say. A cell asks `choose`
which path its scan takes; the answer depends on where the tensors live, what was built here, and one override:
the environment variable LTC_KERNELS or the context manager `use`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn
from torch.autograd import forward_ad

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import newton_scan, triton_scan
from ltc_textgen.kernels.library import LIBRARY, WHY_NOT, instruction_set
from ltc_textgen.shapes import Tensor

Path = Literal["cpu", "triton", "parallel", "reference"]
Choice = Literal["auto", "cpu", "parallel", "reference"]

_chosen: str = os.environ.get("LTC_KERNELS", "auto")


def choose(drive: Tensor) -> Path:
    """Which path a scan of `drive` takes: fused CPU kernel, Triton kernel, in parallel over time, or the reference.

    "triton" and "parallel" exist for the diagonal coupling alone; the other couplings take them for "reference".

    Raises:
        UsageError: If LTC_KERNELS is unknown, or asks for the CPU kernels where they cannot run.
    """
    if runs_on_cpu(drive):
        return "cpu"
    if _chosen in ("reference", "cpu") or _transformed():
        return "reference"
    if _chosen == "parallel":
        return "parallel"
    if triton_scan.available(drive):
        return "triton"
    return "parallel" if newton_scan.worthwhile(drive) else "reference"


def runs_on_cpu(tensor: Tensor) -> bool:
    """Whether the CPU kernels take a call with this tensor: float32, on the CPU, and nothing against it.

    Raises:
        UsageError: As `choose`.
    """
    if _chosen not in get_args(Choice):
        raise UsageError(f"LTC_KERNELS: expected one of {', '.join(get_args(Choice))}, got '{_chosen}'")
    fits = tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not _transformed()
    if fits and _chosen == "cpu" and LIBRARY is None:
        raise UsageError(f"LTC_KERNELS=cpu, but there are no CPU kernels here: {WHY_NOT}")
    return fits and LIBRARY is not None and _chosen in ("auto", "cpu")


def runs_eagerly(tensor: Tensor) -> bool:
    """Whether a kernel that is no operator may take a call: nobody compiles, traces or exports it.

    Under autocast it may if that is to bfloat16, which the caller must see to.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    return type(tensor) is Tensor and runs_on_cpu(tensor)


def hooked(module: nn.Module) -> bool:
    """Whether someone is told of, or changes, what the module computes, so that no kernel may pass it by.

    A `forward` of the object itself is what `accelerate` puts there when it keeps the weights elsewhere.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _transformed() -> bool:
    """Inside torch.func.grad, vmap, forward-mode derivatives and the like, which no custom operator takes part in."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


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
    why_not = triton_scan.why_not(torch.device("cuda"))
    return f"none: {why_not}" if why_not else "yes"
