"""Experimental: the diagonal coupling solved for all tokens at once, by Newton's method over an associative scan.

No CPU run chooses it, and no accelerator has measured it (`dispatch.SCANS`); LTC_KERNELS=parallel turns it on.

The states obey x_t = F_t(x_{t-1}), where F_t is the map of one whole token (all its sub-steps). Linearised at a guess
x~ of the whole sequence,

    x_t = F_t(x~_{t-1}) + J_t (x_{t-1} - x~_{t-1}),      J_t = F_t'(x~_{t-1}),

which is a linear recurrence; and because every neuron sees only the input and itself, J_t is a plain vector. A linear
recurrence is solved in log2(T) rounds of work on all tokens (`linear_scan`); its solution is the next guess. Where the
solver keeps states inside known bounds, guesses are clamped into them, for the solution lies there. A guess that no
longer moves and whose residual x_t - F_t(x_{t-1}) vanishes is the solution; if that does not happen within
`MAX_ITERATIONS`, the sequential loop runs instead, so the result does not depend on convergence.

The gradient is the exact one of the sequential recurrence and does not pass through the iterations: with the
Jacobians at the solution, dL/dx_t = g_t + J_{t+1} dL/dx_{t+1} is again a linear scan, backwards in time.

Convergence is fast where the recurrence contracts (as in `DiagonalLTC(contractive=True)`); for a layer with r = 0 and
a semi-implicit or exponential solver the first iteration is already exact.

Source:
    Lim et al. 2024, arXiv:2309.12252 (Newton iterations over a scan); Blelloch 1990 (the scan). The bounds, the
    fall-back and the membrane's Jacobians are ours.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from ltc_textgen.config import Solver
from ltc_textgen.kernels import reference
from ltc_textgen.kernels.autograd import reference_gradients
from ltc_textgen.kernels.reference import DiagonalParameters, check_diagonal, diagonal_membrane
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import LONGEST_STEP, Method, integrate

MAX_ITERATIONS = 24
"""Newton iterations before the sequential loop takes over. Contracting recurrences need 2 to 8."""

TOLERANCE = {torch.float32: (3e-5, 5e-6), torch.float64: (1e-7, 1e-12)}
"""Largest last move and largest residual of a solution, relative to 1 + |x|. Newton's error after a move is of the
order of its square; the residual of an exact solution is the rounding of one token."""


def parallel_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    parameters: DiagonalParameters,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """All states of a diagonal layer, the tokens in parallel.

    Args:
        drive: W u + b of both synapses, excitatory half first.
        x0: State before the first token.
        dt: Length of a sub-step at each token (step_size * elapsed), token time, >= 0. Zero keeps the state.
        parameters: Of the neurons; g_leak > 0.
        method: How a token is integrated.

    Returns:
        State after each token, and the last one. Equal to the sequential scan up to rounding, gradients too.

    Raises:
        UsageError: If a shape, dtype or device does not fit; the message names expected and got.
    """
    check_diagonal(drive, x0, dt, parameters, method)
    dt = dt.clamp_max(LONGEST_STEP)
    with torch.no_grad():
        solution = solve(drive, x0, dt, parameters, method)
    if solution is None:
        return sequential_scan(drive, x0, dt, parameters, method)
    states = _Implicit.apply(solution, drive, x0, dt, *parameters, method)
    return states, states[:, -1]


def sequential_scan(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    parameters: DiagonalParameters,
    method: Method,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """The same states, one token after the other. Arguments as `parallel_scan`."""
    return reference.sequential_scan(diagonal_membrane, drive, x0, dt, parameters, method)


def token(
    x: Float[Tensor, "*B N"],
    drive: Float[Tensor, "*B two_N"],
    dt: Float[Tensor, "*B 1"],
    parameters: DiagonalParameters,
    method: Method,
) -> Float[Tensor, "*B N"]:
    """F: the state after a token from the state before it, for any number of tokens side by side."""
    conductances = diagonal_membrane(drive.flatten(0, -2), parameters, method.adaptive)
    args = (x.flatten(0, -2), parameters.capacitance, dt.flatten(0, -2), method.steps)
    return integrate(method.solver, conductances, *args).view_as(x)


def token_with_slope(
    x: Float[Tensor, "*B N"],
    drive: Float[Tensor, "*B two_N"],
    dt: Float[Tensor, "*B 1"],
    parameters: DiagonalParameters,
    method: Method,
) -> tuple[Float[Tensor, "*B N"], Float[Tensor, "*B N"]]:
    """F and its derivative J = dF/dx, composed over the sub-steps by the chain rule."""
    advance, slope = _SUBSTEPS[method.solver], torch.ones_like(x)
    for _ in range(method.steps):
        x, factor = advance(lambda s: membrane(s, drive, parameters, method.adaptive), x, parameters.capacitance, dt)
        slope = slope * factor
    return x, slope


def membrane(
    x: Float[Tensor, "*B N"], drive: Float[Tensor, "*B two_N"], parameters: DiagonalParameters, adaptive: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """G and I of the membrane equation (see `solvers`), and their derivatives in x."""
    drive_e, drive_i = drive.chunk(2, dim=-1)
    (r_e, r_i), (reversal_e, reversal_i) = parameters.feedback, parameters.reversal
    f_e, f_i = torch.sigmoid(drive_e + r_e * x), torch.sigmoid(drive_i + r_i * x)
    slope_e, slope_i = r_e * f_e * (1 - f_e), r_i * f_i * (1 - f_i)
    current, current_slope = f_e * reversal_e - f_i * reversal_i, slope_e * reversal_e - slope_i * reversal_i
    if adaptive:
        return parameters.leak + f_e + f_i, current, slope_e + slope_i, current_slope
    return parameters.leak.expand_as(x), current, torch.zeros_like(x), current_slope


_Slopes = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def _semi_implicit(at: _Slopes, x: Tensor, capacitance: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    conductance, current, conductance_slope, current_slope = at(x)
    total = capacitance + dt * conductance
    new = x * (capacitance / total) + current * (dt / total)
    return new, (capacitance + dt * (current_slope - conductance_slope * new)) / total


def _exponential(at: _Slopes, x: Tensor, capacitance: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    conductance, current, conductance_slope, current_slope = at(x)
    conductance = conductance.clamp_min(torch.finfo(x.dtype).tiny)
    scale = dt / capacitance
    rate = conductance * scale
    decay, gain = torch.exp(-rate), -torch.expm1(-rate) / conductance
    # d gain / dG = (dt/C)^2 p(rate), p(r) = (e^-r - (1 - e^-r) / r) / r, which cancels for small r: there, its series.
    safe, series = rate.clamp_min(0.1), torch.zeros_like(rate)
    for k in range(8, 0, -1):
        series = (-1) ** k * k / math.factorial(k + 1) + rate * series
    direct = (torch.exp(-safe) + torch.expm1(-safe) / safe) / safe
    gain_slope = scale**2 * torch.where(rate < 0.1, series, direct)
    slope = (
        decay * (1 - x * scale * conductance_slope) + current_slope * gain + current * gain_slope * conductance_slope
    )
    return x * decay + current * gain, slope


def _explicit(at: _Slopes, x: Tensor, capacitance: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    conductance, current, conductance_slope, current_slope = at(x)
    change_slope = current_slope - conductance_slope * x - conductance
    return x + dt / capacitance * (current - conductance * x), 1 + dt / capacitance * change_slope


def _runge_kutta(at: _Slopes, x: Tensor, capacitance: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    total, total_slope = torch.zeros_like(x), torch.zeros_like(x)
    change, change_slope = torch.zeros_like(x), torch.zeros_like(x)
    for offset, weight in ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)):
        state, state_slope = x + offset * dt * change, 1 + offset * dt * change_slope
        conductance, current, conductance_slope, current_slope = at(state)
        change = (current - conductance * state) / capacitance
        change_slope = (current_slope - conductance_slope * state - conductance) / capacitance * state_slope
        total, total_slope = total + weight * change, total_slope + weight * change_slope
    return x + dt * total, 1 + dt * total_slope


_SUBSTEPS = {
    Solver.semi_implicit: _semi_implicit,
    Solver.exponential: _exponential,
    Solver.explicit: _explicit,
    Solver.runge_kutta: _runge_kutta,
}


def linear_scan(slope: Float[Tensor, "B T N"], offset: Float[Tensor, "B T N"]) -> Float[Tensor, "B T N"]:
    """Solve x_t = slope_t x_{t-1} + offset_t with x_{-1} = 0, for all t at once.

    Pairs of neighbouring maps are composed, (a2, b2) after (a1, b1) = (a2 a1, a2 b1 + b2), the half-length problem is
    solved, and the states between are filled in: O(T) work in O(log T) rounds.
    """
    tokens = slope.shape[1]
    if tokens == 1:
        return offset
    later, last_pair = slope[:, 1::2], tokens - tokens % 2
    odd = linear_scan(later * slope[:, 0:last_pair:2], later * offset[:, 0:last_pair:2] + offset[:, 1::2])
    states = torch.empty_like(offset)
    states[:, 0], states[:, 1::2] = offset[:, 0], odd
    between = (tokens - 1) // 2
    states[:, 2::2] = slope[:, 2::2] * odd[:, :between] + offset[:, 2::2]
    return states


def state_bounds(
    x0: Float[Tensor, "B N"], parameters: DiagonalParameters, method: Method
) -> tuple[Tensor, Tensor] | None:
    """Lowest and highest state that the solver can reach from x0, each (B, 1, N); None if it keeps no bounds.

    The semi-implicit and the exponential solver only ever take weighted means of the state and the equilibrium I / G.
    With a liquid time constant that lies between 0, E_e and -E_i; with a frozen one it is a sum over g_leak.
    """
    if method.solver not in {Solver.semi_implicit, Solver.exponential}:
        return None
    zero = torch.zeros_like(x0[:1])
    drives = torch.stack((parameters.reversal[0], -parameters.reversal[1]))
    if method.adaptive:
        low, high = drives.amin(0), drives.amax(0)
    else:
        low, high = drives.clamp_max(0).sum(0) / parameters.leak, drives.clamp_min(0).sum(0) / parameters.leak
    return (torch.minimum(torch.minimum(low, zero), x0)[:, None], torch.maximum(torch.maximum(high, zero), x0)[:, None])


def solve(
    drive: Float[Tensor, "B T two_N"],
    x0: Float[Tensor, "B N"],
    dt: Float[Tensor, "B T"],
    parameters: DiagonalParameters,
    method: Method,
) -> Float[Tensor, "B T N"] | None:
    """Newton's method for the whole sequence; None if it does not converge within `MAX_ITERATIONS`."""
    dt, bounds, (smallest_move, tolerance) = dt[..., None], state_bounds(x0, parameters, method), TOLERANCE[x0.dtype]
    states, settled = torch.zeros_like(drive[..., : x0.shape[1]]), False
    for _ in range(MAX_ITERATIONS + 1):
        before = torch.cat((x0[:, None], states[:, :-1]), dim=1)
        value, slope = token_with_slope(before, drive, dt, parameters, method)
        residual = value - states
        if settled and bool((residual.abs() <= tolerance * (1 + value.abs())).all()):
            return value
        # For the correction d = x - x~ Newton's recurrence reads d_t = J_t d_{t-1} + residual_t: nothing cancels.
        move = linear_scan(slope, residual)
        states = states + move if bounds is None else (states + move).clamp(*bounds)
        largest = (move.abs() / (1 + states.abs())).amax()
        if not bool(torch.isfinite(largest)):
            return None
        settled = bool(largest <= smallest_move)
    return None


class _Implicit(torch.autograd.Function):
    """Gradient of the recurrence at a given solution (the implicit function theorem)."""

    @staticmethod
    def forward(ctx: Any, solution: Tensor, *arguments: Any) -> Tensor:
        *tensors, ctx.method = arguments
        ctx.save_for_backward(solution, *tensors)
        return solution.view_as(solution)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, drive, x0, dt, *rest = ctx.saved_tensors
        if torch.is_grad_enabled():

            def run(drive: Tensor, x0: Tensor, dt: Tensor, *rest: Tensor) -> Tensor:
                return sequential_scan(drive, x0, dt, DiagonalParameters(*rest), ctx.method)[0]

            found = reference_gradients(run, (drive, x0, dt, *rest), ctx.needs_input_grad[1:-1], (gradient,))
            return (None, *found, None)
        before = torch.cat((x0[:, None], states[:, :-1]), dim=1)
        _, slope = token_with_slope(before, drive, dt[..., None], DiagonalParameters(*rest), ctx.method)
        # dL/dx_t = g_t + J_{t+1} dL/dx_{t+1}: the scan of the reversed sequence, with the Jacobians one token later.
        shifted = torch.cat((torch.zeros_like(slope[:, :1]), slope.flip(1)[:, :-1]), dim=1)
        adjoint = linear_scan(shifted, gradient.flip(1)).flip(1)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (before, drive, dt, *rest)]
            after = token(leaves[0], leaves[1], leaves[2][..., None], DiagonalParameters(*leaves[3:]), ctx.method)
        to_before, to_drive, *others = torch.autograd.grad(after, leaves, adjoint)
        return None, to_drive, to_before[:, 0], *others, None
