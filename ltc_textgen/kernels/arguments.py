"""What the diagonal scans are given, checked where no compiled code does it."""

from typing import NamedTuple

import torch

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.shapes import Float, Tensor

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
