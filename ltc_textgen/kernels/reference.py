"""The recurrences in plain PyTorch: what every kernel computes, and what is differentiated a second time.

A membrane is a function x -> (G, I) (see `solvers`). Each coupling has its parameters, as the recurrence uses them, and
a function that makes the membrane of one token from them; `sequential_scan` integrates any of them over time.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.dispatch import Access, access
from ltc_textgen.shapes import Bool, Float, Tensor
from ltc_textgen.solvers import Membrane, Method, integrate

CHUNK = 2**21
"""Sigmoids held at once by `synaptic_sums`, 8 MB in float32."""

KEPT = 2**14
"""Sums over at most so many sigmoids keep them for the backward pass; larger ones compute them again."""


class DiagonalParameters(NamedTuple):
    """Parameters of the diagonal coupling (equation in `layers.diagonal`).

    Args:
        feedback: r_e and r_i.
        reversal: E_e and E_i; the inhibitory synapse drives the state towards -E_i.
        capacitance: C > 0.
        leak: g_leak >= 0.
    """

    feedback: Float[Tensor, "2 N"]
    reversal: Float[Tensor, "2 N"]
    capacitance: Float[Tensor, " N"]
    leak: Float[Tensor, " N"]


class FullParameters(NamedTuple):
    """Parameters of the full coupling (equation in `layers.full`).

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


class Synapses(NamedTuple):
    """The synapses from P sources onto N neurons, [source, target].

    Args:
        w: Conductance of the open synapse, >= 0.
        sigma: Slope of its sigmoid.
        mu: Value of the source at which it is half open.
        reversal: E, the value towards which the open synapse drives the target.
        mask: Which synapses exist; the others have no effect and no gradient. `w` must be zero there.
    """

    w: Float[Tensor, "P N"]
    sigma: Float[Tensor, "P N"]
    mu: Float[Tensor, "P N"]
    reversal: Float[Tensor, "P N"]
    mask: Bool[Tensor, "P N"]


class SynapticParameters(NamedTuple):
    """Parameters of the synaptic coupling (equation in `layers.synaptic`).

    Args:
        w: The synapses between neurons, as in `Synapses`; so are
        sigma: their slopes,
        mu: their thresholds,
        reversal: their reversal potentials and
        mask: which of them exist.
        capacitance: C > 0.
        leak: g_leak >= 0.
        current: g_leak x_leak.
    """

    w: Float[Tensor, "N N"]
    sigma: Float[Tensor, "N N"]
    mu: Float[Tensor, "N N"]
    reversal: Float[Tensor, "N N"]
    mask: Bool[Tensor, "N N"]
    capacitance: Float[Tensor, " N"]
    leak: Float[Tensor, " N"]
    current: Float[Tensor, " N"]

    @property
    def synapses(self) -> Synapses:
        """The synapses between neurons."""
        return Synapses(*self[:5])


Parameters = DiagonalParameters | FullParameters | SynapticParameters
"""Parameters of any coupling."""

PRECISIONS = {torch.float32, torch.float64}


def check_diagonal(drive: Tensor, x0: Tensor, dt: Tensor, parameters: DiagonalParameters, method: Method) -> None:
    """Check shapes, precision and device of a diagonal scan's arguments, where no compiled code does it.

    Values are not checked: on an accelerator that would make the host wait.

    Raises:
        UsageError: Naming the first argument that does not fit, what was expected and what was given.
    """
    if drive.ndim != 3 or 0 in drive.shape or drive.shape[2] % 2:
        raise UsageError(f"drive: expected (B, T, 2 N) with B, T, N >= 1, got {tuple(drive.shape)}")
    if drive.dtype not in PRECISIONS:
        raise UsageError(f"drive: expected float32 or float64, got {drive.dtype}")
    if method.steps < 1:
        raise UsageError(f"steps: expected 1 or more, got {method.steps}")
    B, T, N = drive.shape[0], drive.shape[1], drive.shape[2] // 2
    shapes, names = ((B, N), (B, T), (2, N), (2, N), (N,), (N,)), ("x0", "dt", *DiagonalParameters._fields)
    for name, tensor, shape in zip(names, (x0, dt, *parameters), shapes, strict=True):
        expected, got = (shape, drive.dtype, drive.device), (tuple(tensor.shape), tensor.dtype, tensor.device)
        if expected != got:
            raise UsageError(f"{name}: expected {', '.join(map(str, expected))}, got {', '.join(map(str, got))}")


def diagonal_membrane(drive: Float[Tensor, "B two_N"], parameters: DiagonalParameters, adaptive: bool) -> Membrane:
    """Conductances of one token: f = sigmoid(drive + r x) of both synapses, excitatory half of the drive first."""
    drive_e, drive_i = drive.chunk(2, dim=-1)
    (r_e, r_i), (reversal_e, reversal_i), _, leak = parameters

    def conductances(x: Tensor) -> tuple[Tensor, Tensor]:
        f_e, f_i = torch.sigmoid(drive_e + r_e * x), torch.sigmoid(drive_i + r_i * x)
        return (leak + f_e + f_i if adaptive else leak), f_e * reversal_e - f_i * reversal_i

    return conductances


def full_membrane(drive: Float[Tensor, "B N"], parameters: FullParameters, adaptive: bool) -> Membrane:
    """Conductances of one token: f = sigmoid(drive + W_rec x)."""
    weight, reversal, _, leak = parameters

    def conductances(x: Tensor) -> tuple[Tensor, Tensor]:
        f = torch.sigmoid(drive + F.linear(x, weight))
        return (leak + f if adaptive else leak), f * reversal

    return conductances


def synaptic_membrane(drive: Float[Tensor, "B two_N"], parameters: SynapticParameters, adaptive: bool) -> Membrane:
    """Conductances of one token, whose drive is conductance and current of the inputs' synapses, side by side."""
    sensory_conductance, sensory_current = drive.chunk(2, dim=-1)
    fixed_current, synapses = sensory_current + parameters.current, parameters.synapses

    def conductances(x: Tensor) -> tuple[Tensor, Tensor]:
        conductance, current = synaptic_sums(x, synapses)
        total = parameters.leak + sensory_conductance + conductance if adaptive else parameters.leak
        return total, fixed_current + current

    return conductances


def sequential_scan(
    membrane: Callable[..., Membrane],
    drive: Float[Tensor, "B T _"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    parameters: Parameters,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Integrate one token after the other.

    Args:
        membrane: Makes the membrane of a token from its drive, the parameters and `adaptive`.
        drive: What the inputs bring.
        x0: State before the first token.
        dt: Length of a sub-step of each token, step_size * elapsed, >= 0 and finite.
        parameters: Of the coupling.
        method: How a token is integrated.

    Returns:
        States after each token, and the last.
    """
    x, states = x0, []
    for t in range(drive.shape[1]):
        token = membrane(drive[:, t], parameters, method.adaptive)
        x = integrate(method.solver, token, x, parameters.capacitance, dt[:, t, None], method.steps)
        states.append(x)
    return torch.stack(states, dim=1), x


def synaptic_sums(x: Float[Tensor, "M P"], synapses: Synapses) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"]]:
    """Conductance sum_j w s and current sum_j w s E onto every neuron, s = sigmoid(sigma (x - mu)), for M rows.

    The M x P x N sigmoids exist for a few rows at a time, and when there are many the backward pass computes them
    again instead of keeping them.
    """
    *tables, _ = synapses
    if torch.compiler.is_exporting():  # the number of parts would bind the program to small batches
        return _sums(x, *tables)
    rows = max(1, CHUNK // synapses.w.numel())
    few = x.shape[0] * synapses.w.numel() <= KEPT
    if few or not torch.is_grad_enabled() or access() == Access.reference:  # where saved tensors have no hooks
        sums = [_sums(part, *tables) for part in x.split(rows)]
    else:
        sums = [checkpoint(_sums, p, *tables, use_reentrant=False, preserve_rng_state=False) for p in x.split(rows)]
    conductances, currents = zip(*sums, strict=True)
    return torch.cat(conductances), torch.cat(currents)


def _sums(x: Tensor, w: Tensor, sigma: Tensor, mu: Tensor, reversal: Tensor) -> tuple[Tensor, Tensor]:
    conductances = w * torch.sigmoid(sigma * (x[:, :, None] - mu))
    return conductances.sum(1), (conductances * reversal).sum(1)
