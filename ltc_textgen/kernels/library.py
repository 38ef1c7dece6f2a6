"""The shared library of CPU kernels: found, loaded with ctypes, and its status codes turned into errors.

The structures mirror `csrc/kernels.h`. A kernel takes plain pointers, so the caller is responsible for shapes, dtypes
and contiguity (see `autograd.dense`).
"""

import ctypes
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.shapes import Tensor

PATH = Path(__file__).with_name("_liquid.so")
SOLVER_CODES = {Solver.semi_implicit: 0, Solver.explicit: 1, Solver.runge_kutta: 2, Solver.exponential: 3}
REFUSED: Mapping[int, tuple[str, str, str, Callable[[float], bool]]] = {
    2: ("capacitance", "capacitance", "> 0", lambda value: not value <= 0),
    3: ("leak", "leak", ">= 0", lambda value: not value < 0),
    4: ("dt", "elapsed", ">= 0 and finite", lambda value: value >= 0 and math.isfinite(value)),
}
"""Status -> input, what to call it, what its values must be, and whether one is. NaN passes in parameters: it is the
mark of a training that diverged and must show in the loss."""

INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512vnni")
"""What a build for x86 may have, the best last; other processors have the first."""

SMALL = 1 << 17
"""Sigmoids of a call, about 30 microseconds, below which waking a second thread costs more than it saves."""


class Shape(ctypes.Structure):
    """Sizes and method of a scan."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "T", "N", "steps")),
        ("solver", ctypes.c_int),
        ("adaptive", ctypes.c_bool),
        ("threads", ctypes.c_int),
    )


def pointers(*names: str) -> tuple[tuple[str, type], ...]:
    """Fields of a structure of array pointers."""
    return tuple((name, ctypes.c_void_p) for name in names)


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why there is none."""
    if not PATH.exists():
        return None, "the package was built without a C++ compiler"
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        return None, f"the library does not load: {error}"
    library.ltc_instruction_set.restype = ctypes.c_char_p
    library.ltc_use_instruction_set.argtypes = [ctypes.c_char_p]
    _select(library, os.environ.get("LTC_ISA", "auto"))
    return library, ""


def _select(library: ctypes.CDLL, name: str) -> None:
    """Make a library use the instruction set that LTC_ISA asks for; "auto" leaves it the best one.

    Raises:
        UsageError: If this build or processor does not have it.
    """
    if name == "auto" or library.ltc_use_instruction_set(name.encode()):
        return
    has = [known for known in INSTRUCTION_SETS if library.ltc_use_instruction_set(known.encode())]
    raise UsageError(f"LTC_ISA: expected auto, {', '.join(has)} (what this build and processor have), got '{name}'")


LIBRARY, WHY_NOT = _load()


def instruction_set() -> str:
    """Name of the instruction set in use: avx512vnni (avx512 with a decoder for bytes), avx512, avx2 or baseline."""
    assert LIBRARY is not None
    return str(LIBRARY.ltc_instruction_set().decode())


def use_instruction_set(name: str) -> bool:
    """Make the kernels use another instruction set; False if this build or CPU does not have it."""
    return LIBRARY is not None and bool(LIBRARY.ltc_use_instruction_set(name.encode()))


def threads_for(sigmoids: int) -> int:
    """Threads worth waking for so much work, at most what PyTorch uses. One in a forked process.

    A fork inherits the record of its parent's OpenMP threads but not the threads, and would wait for them for ever.
    """
    return 1 if sigmoids < SMALL or _forked else torch.get_num_threads()


def _after_fork() -> None:
    global _forked
    _forked = True


_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def raise_for(status: int, inputs: Mapping[str, Tensor]) -> None:
    """Raise the error that a kernel's status stands for.

    Args:
        status: What the kernel returned.
        inputs: Its inputs by name, to say which value was wrong.

    Raises:
        UsageError: Naming the first value that cannot be.
        MemoryError: If the kernel found no memory to work in.
    """
    if status == 0:
        return
    if status == 1:
        raise MemoryError("a kernel found no memory for its workspace")
    key, name, rule, fits = REFUSED[status]
    index, value = next((i, v) for i, v in enumerate(inputs[key].detach().flatten().tolist()) if not fits(v))
    raise UsageError(f"{name}: every value must be {rule}, got {value} at position {index}")
