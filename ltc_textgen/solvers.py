"""One step of the membrane equation, four ways, behind one signature.

Every liquid neuron has conductances g_s >= 0 that drive its state x towards reversal potentials E_s:

    C dx/dt = sum_s g_s (E_s - x) = I(x) - G(x) x,      G = sum_s g_s,   I = sum_s g_s E_s      (leak included)

so that tau_sys = C / G. A layer gives a solver its *membrane*, the function x -> (G, I); a solver advances x by dt.

| solver          | order | bounded for every dt > 0           | membrane evaluations |
|-----------------|-------|------------------------------------|----------------------|
| semi_implicit   | 1     | yes                                | 1                    |
| exponential     | 1     | yes; exact if G and I do not move  | 1                    |
| explicit        | 1     | only while dt <= C / G             | 1                    |
| runge_kutta     | 4     | no; stable while dt < 2.785 C / G  | 4                    |

To add a solver: write a function of this signature, add it to `SOLVERS` and its name to `config.Solver`.
`tests/test_solvers.py` measures the order of everything in the table.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from ltc_textgen.config import Solver
from ltc_textgen.shapes import Float, Tensor

Membrane = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (B, N) -> total conductance G (B, N), >= 0, and drive I = sum_s g_s E_s (B, N)."""

SolverStep = Callable[[Membrane, Tensor, Tensor, Tensor], Tensor]


class Method(NamedTuple):
    """How a token is integrated.

    Args:
        steps: Sub-steps per token, >= 1.
        solver: How a sub-step is taken.
        adaptive: Whether synapses change the time constants (see `layers.base.MembraneLayer`).
    """

    steps: int
    solver: Solver
    adaptive: bool


def semi_implicit(
    membrane: Membrane, x: Float[Tensor, "B N"], capacitance: Float[Tensor, " N"], dt: Float[Tensor, "..."]
) -> Float[Tensor, "B N"]:
    """Advance x by dt with the fused step: conductances at the old state, the state itself at the new one.

        x' = (C x + dt I) / (C + dt G)

    A weighted mean of x and the reversal potentials, hence inside their range for every dt > 0, and x itself at dt = 0.

    Args:
        membrane: The layer's conductances as a function of the state.
        x: State at time t.
        capacitance: C > 0.
        dt: Step in token time, >= 0; a number or one per sample (B, 1).

    Returns:
        State at time t + dt.

    Source:
        Hasani et al. 2021, arXiv:2006.04439, Eq. 3 (their C is 1). Algorithm 1 as printed feeds x(t) into every
        sub-step; like the authors' code, we feed the result of the sub-step before.
    """
    conductance, drive = membrane(x)
    total = capacitance + dt * conductance
    return x * (capacitance / total) + drive * (dt / total)


def exponential(
    membrane: Membrane, x: Float[Tensor, "B N"], capacitance: Float[Tensor, " N"], dt: Float[Tensor, "..."]
) -> Float[Tensor, "B N"]:
    """Advance x by dt exactly for conductances frozen at the old state (exponential Euler, ETD1).

        x' = x exp(-dt G / C) + (I / G) (1 - exp(-dt G / C))

    Same arguments, bounds and order as `semi_implicit`; smaller error at large dt, one exponential more.

    Source:
        Hochbruck and Ostermann 2010, Acta Numerica 19, Eq. 2.1 (phi_1).
    """
    conductance, drive = membrane(x)
    divisor = conductance.clamp_min(torch.finfo(x.dtype).tiny)  # G -> 0: the limit of (1 - exp)/G is dt/C
    decay = torch.exp(-conductance / capacitance * dt)
    return x * decay + drive * (-torch.expm1(-divisor / capacitance * dt) / divisor)


def explicit(
    membrane: Membrane, x: Float[Tensor, "B N"], capacitance: Float[Tensor, " N"], dt: Float[Tensor, "..."]
) -> Float[Tensor, "B N"]:
    """Advance x by dt with Euler's method, x' = x + dt (I - G x) / C. Diverges for dt > 2 C / G."""
    conductance, drive = membrane(x)
    return x + dt / capacitance * (drive - conductance * x)


def runge_kutta(
    membrane: Membrane, x: Float[Tensor, "B N"], capacitance: Float[Tensor, " N"], dt: Float[Tensor, "..."]
) -> Float[Tensor, "B N"]:
    """Advance x by dt with the classical fourth-order method. Diverges for dt > 2.785 C / G."""

    def slope(state: Tensor) -> Tensor:
        conductance, drive = membrane(state)
        return (drive - conductance * state) / capacitance

    k1 = slope(x)
    k2 = slope(x + dt / 2 * k1)
    k3 = slope(x + dt / 2 * k2)
    k4 = slope(x + dt * k3)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


LONGEST_STEP = 1e25
"""In token time. After it nothing moves any more, and dt G stays far from the end of float32."""

SOLVERS: Mapping[Solver, SolverStep] = {
    Solver.semi_implicit: semi_implicit,
    Solver.explicit: explicit,
    Solver.runge_kutta: runge_kutta,
    Solver.exponential: exponential,
}


def integrate(
    solver: Solver,
    membrane: Membrane,
    x: Float[Tensor, "B N"],
    capacitance: Float[Tensor, " N"],
    dt: Float[Tensor, "..."],
    steps: int,
) -> Float[Tensor, "B N"]:
    """Advance x over one token: `steps` sub-steps of length dt (= step_size * elapsed), with any solver.

    A longer sub-step than `LONGEST_STEP` is taken as that.
    """
    advance, dt = SOLVERS[solver], dt.clamp_max(LONGEST_STEP)
    for _ in range(steps):
        x = advance(membrane, x, capacitance, dt)
    return x
