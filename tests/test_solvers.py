"""The solvers keep what the table in `solvers` promises: order, bounds, fixed point, limits."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ltc_textgen.config import Solver
from ltc_textgen.solvers import SOLVERS, integrate

BOUNDED = [Solver.semi_implicit, Solver.exponential]
ORDER = {Solver.semi_implicit: 1, Solver.exponential: 1, Solver.explicit: 1, Solver.runge_kutta: 4}
CAPACITANCE = torch.tensor([0.7, 1.0, 2.5], dtype=torch.float64)


# Equations C dx/dt = I(x) - G(x) x with G >= 0, I and G moving with x, and a solution in closed form.
def tanh_membrane(x):
    """C dx/dt = 1 - x^2: x = tanh(t / C + c). Parted so that no solver is better than its order by chance."""
    return 1 + 3 * x, 1 + x + 2 * x * x


def tanh_solution(t):
    return torch.tanh(t / CAPACITANCE + 0.1)[None]


def cubic_membrane(x):
    """C dx/dt = -x^3, a synapse with its reversal at 0: x = (2 t / C + c)^(-1/2)."""
    return x * x, torch.zeros_like(x)


def cubic_solution(t):
    return (2 * t / CAPACITANCE + 1.0).rsqrt()[None]


def constant_membrane(x):
    return torch.full_like(x, 0.8), torch.full_like(x, -0.3)


PROBLEMS = {"tanh": (tanh_membrane, tanh_solution), "cubic": (cubic_membrane, cubic_solution)}
RESTS = {"tanh": 1.0, "cubic": 0.0}


def error(solver, problem, steps, horizon=1.5):
    membrane, solution = PROBLEMS[problem]
    h = torch.tensor(horizon / steps, dtype=torch.float64)
    x = integrate(solver, membrane, solution(torch.tensor(0.0)), CAPACITANCE, h, steps)
    return (x - solution(torch.tensor(horizon))).abs().max().item()


def test_every_solver_has_an_order():
    assert set(ORDER) == set(SOLVERS) == set(Solver)


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", Solver)
def test_measured_order_of_convergence(solver, problem):
    steps = np.array([64, 128, 256, 512])
    errors = [error(solver, problem, k) for k in steps.tolist()]
    slope = -np.polyfit(np.log2(steps), np.log2(errors), 1)[0]
    assert slope == pytest.approx(ORDER[solver], abs=0.15)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", Solver)
def test_all_solvers_have_one_horizon(solver, problem):
    """As h goes to 0 each comes to the same end: with a horizon of its own, one would stay away from it."""
    assert error(solver, problem, 500) < 2e-3


@pytest.mark.parametrize("h", [1e-3, 0.4, 30.0])
def test_exponential_is_exact_for_frozen_conductances(h):
    x = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    rest = -0.3 / 0.8
    expected = rest + (x - rest) * torch.exp(-0.8 * h / CAPACITANCE)
    step = torch.tensor(h, dtype=torch.float64)
    assert_close(SOLVERS[Solver.exponential](constant_membrane, x, CAPACITANCE, step), expected, rtol=1e-14, atol=1e-14)


def test_exponential_without_conductance_is_a_pure_current():
    def membrane(x):
        return torch.zeros_like(x), torch.ones_like(x)

    x = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    h = torch.tensor(0.4, dtype=torch.float64)
    assert_close(SOLVERS[Solver.exponential](membrane, x, CAPACITANCE, h), x + 0.4 / CAPACITANCE)


# Adversarial synapses: values over many magnitudes and of both signs, in float32 as in training.
sizes = st.floats(-6, 6).map(lambda power: 10.0**power)
values = st.one_of(st.just(0.0), sizes, sizes.map(lambda v: -v), st.sampled_from([1e6, -1e6]))
lengths = st.one_of(st.sampled_from([0.0, 1e-30, 1e30]), st.floats(-30, 30).map(lambda power: 10.0**power))
synapses = st.lists(st.tuples(st.one_of(st.just(0.0), sizes), values), min_size=1, max_size=4)


def frozen(pairs):
    conductances, reversals = torch.tensor(pairs).unbind(1)

    def membrane(x):
        return conductances.sum().expand_as(x), (conductances * reversals).sum().expand_as(x)

    return membrane, conductances, reversals


@pytest.mark.parametrize("solver", BOUNDED)
@given(pairs=synapses, start=values, capacitance=sizes, h=lengths)
@example(pairs=[(1e6, 1e6), (1e6, -1e6)], start=1e6, capacitance=1e-6, h=1e30)
@example(pairs=[(0.0, 0.0)], start=1.0, capacitance=1e-3, h=1e30)
@settings(max_examples=200, deadline=None)
def test_states_stay_between_old_state_and_reversal_potentials(solver, pairs, start, capacitance, h):
    membrane, conductances, reversals = frozen(pairs)
    x = torch.tensor([[start]])
    after = SOLVERS[solver](membrane, x, torch.tensor([capacitance]), torch.tensor([[h]])).item()
    reachable = [start, *reversals[conductances > 0].tolist()]
    rounding = 4e-6 * max(map(abs, reachable))
    assert min(reachable) - rounding <= after <= max(reachable) + rounding


@pytest.mark.parametrize("solver", Solver)
@given(pairs=synapses, start=values, capacitance=sizes)
@settings(max_examples=50, deadline=None)
def test_no_time_is_the_identity_to_the_bit(solver, pairs, start, capacitance):
    membrane, _, _ = frozen(pairs)
    x = torch.tensor([[start]])
    assert SOLVERS[solver](membrane, x, torch.tensor([capacitance]), torch.tensor([[0.0]])).equal(x)


@pytest.mark.parametrize("solver", BOUNDED)
def test_endless_time_is_the_equilibrium_of_frozen_conductances(solver):
    x = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    after = SOLVERS[solver](constant_membrane, x, CAPACITANCE, torch.tensor(1e15, dtype=torch.float64))
    assert_close(after, torch.full_like(x, -0.3 / 0.8))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("h", [1e-3, 0.5, 1.1])
def test_equilibrium_is_a_fixed_point_for_every_step(solver, problem, h):
    x = torch.full((1, 3), RESTS[problem], dtype=torch.float64)
    step = torch.tensor(h, dtype=torch.float64)
    assert_close(SOLVERS[solver](PROBLEMS[problem][0], x, CAPACITANCE, step), x, rtol=1e-14, atol=0)


@pytest.mark.parametrize("solver", Solver)
def test_gradients(solver):
    draw = torch.Generator().manual_seed(0)
    x, weight, current = (torch.randn(2, 3, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(3))
    capacitance = CAPACITANCE.clone().requires_grad_()
    h = torch.tensor([[0.3], [0.0]], dtype=torch.float64, requires_grad=True)

    def advance(x, weight, current, capacitance, h):
        def membrane(state):
            gate = torch.sigmoid(weight * state)
            return 0.1 + gate, gate * current

        return integrate(solver, membrane, x, capacitance, h, 3)

    assert torch.autograd.gradcheck(advance, (x, weight, current, capacitance, h))


@pytest.mark.parametrize("solver", Solver)
def test_each_sample_takes_its_own_step(solver):
    """B = N, so that a step of shape (B,) instead of (B, 1) would spread over neurons without an error."""
    x = torch.rand(3, 3, dtype=torch.float64)
    h = torch.tensor([[0.1], [0.5], [1.0]], dtype=torch.float64)
    together = integrate(solver, tanh_membrane, x, CAPACITANCE, h, 2)
    alone = [integrate(solver, tanh_membrane, x[b : b + 1], CAPACITANCE, h[b], 2) for b in range(3)]
    assert_close(together, torch.cat(alone))
