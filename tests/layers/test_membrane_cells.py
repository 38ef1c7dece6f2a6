"""What follows from the membrane equation: bounds, equilibria, time constants, and what `adaptive` switches."""

from itertools import product

import pytest
import torch
from cell_kinds import INPUTS, NEURONS, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ltc_textgen.config import ModelConfig, Solver
from ltc_textgen.layers import DiagonalLTC, FullLTC, SynapticLTC, build_layer
from ltc_textgen.layers.full import REVERSAL, TAU_RANGE
from ltc_textgen.solvers import integrate

BOUNDED = [Solver.semi_implicit, Solver.exponential]


def reversals(cell):
    """Smallest and largest potential that any conductance of a neuron, leak included, pulls towards."""
    zero = torch.zeros(NEURONS, dtype=torch.float64)
    if isinstance(cell, FullLTC):
        potentials = torch.stack([zero, cell.reversal])
    elif isinstance(cell, DiagonalLTC):
        potentials = torch.stack([zero, cell.reversal[0], -cell.reversal[1]])
    else:
        assert isinstance(cell, SynapticLTC)
        groups = [torch.where(g.mask, g.reversal, cell.rest) for g in (cell.recurrent, cell.sensory)]
        potentials = torch.cat([cell.rest[None], *groups])
    return potentials.amin(0), potentials.amax(0)


def leak_and_most(cell):
    """g_leak and the conductance of all synapses wide open."""
    if isinstance(cell, FullLTC):
        return torch.exp(-cell.log_tau), torch.exp(-cell.log_tau) + 1
    if isinstance(cell, DiagonalLTC):
        return torch.exp(cell.log_leak), torch.exp(cell.log_leak) + 2
    assert isinstance(cell, SynapticLTC)
    leak = torch.nn.functional.softplus(cell.raw_leak)
    return leak, leak + cell.recurrent.synapses.w.sum(0) + cell.sensory.synapses.w.sum(0)


loud = st.sampled_from([0.0, 1.0, -1.0, 30.0, 1e6, -1e6])


@pytest.mark.slow
@pytest.mark.parametrize("solver", BOUNDED)
def test_states_stay_between_reversal_potentials(membrane_kind, solver):
    """Theorem 2 of Hasani et al. 2021, for any input, any start and any time."""
    cell = make(membrane_kind, solver)
    low, high = reversals(cell)

    @given(st.lists(loud, min_size=3, max_size=3), loud, st.floats(-12, 12).map(lambda power: 10.0**power))
    @settings(max_examples=30, deadline=None)
    @torch.no_grad()
    def check(u, start, elapsed):
        x = torch.full((1, NEURONS), start, dtype=torch.float64)
        u = torch.tensor(u, dtype=torch.float64).expand(1, 4, INPUTS)
        states, _ = cell.trajectory(u, x, elapsed)
        rounding = 1e-12 * (1 + abs(start))
        assert (states >= torch.minimum(low, x) - rounding).all()
        assert (states <= torch.maximum(high, x) + rounding).all()

    check()


@pytest.mark.parametrize("solver", Solver)
@torch.no_grad()
def test_no_elapsed_time_is_the_identity_to_the_bit(membrane_kind, solver):
    cell = make(membrane_kind, solver).float()
    x = 1e6 * torch.randn(5, NEURONS)
    states, last = cell.trajectory(100 * torch.randn(5, 3, INPUTS), x, 0.0)
    assert last.equal(x)
    assert states.equal(x[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize(("solver", "adaptive"), list(product(BOUNDED, [True, False])))
@torch.no_grad()
def test_endless_time_is_the_equilibrium_of_the_conductances_at_the_start(membrane_kind, solver, adaptive):
    cell = make(membrane_kind, solver, adaptive, steps=1)
    u = torch.randn(2, 1, INPUTS, dtype=torch.float64)
    x = torch.rand(2, NEURONS, dtype=torch.float64)
    conductance, current = cell.membrane(cell.project(u)[:, 0])(x)
    assert_close(cell(u, x, 1e14)[1], current / conductance)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "adaptive"), list(product(Solver, [True, False])))
@torch.no_grad()
def test_state_at_equilibrium_does_not_move(membrane_kind, solver, adaptive):
    cell = make(membrane_kind, solver, adaptive)
    u = torch.randn(2, 1, INPUTS, dtype=torch.float64)
    membrane = cell.membrane(cell.project(u)[:, 0])
    x = torch.zeros(2, NEURONS, dtype=torch.float64)
    for _ in range(4000):  # damped iteration towards I / G
        conductance, current = membrane(x)
        change = 0.1 * (current / conductance - x)
        x = x + change
        if change.abs().max() < 1e-13:
            break
    conductance, current = membrane(x)
    assert_close(current / conductance, x, rtol=1e-10, atol=1e-10)
    # Explicit solvers are stable only while h is below about 2 C / G.
    elapsed = 0.5 * (cell.capacitance / conductance).min().item()
    last = cell(u.expand(-1, 5, -1).clone(), x, elapsed)[1]
    assert_close(last, x, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [True, False])
@torch.no_grad()
def test_solvers_agree_on_the_same_horizon_as_sub_steps_shrink(membrane_kind, adaptive):
    u, x = torch.randn(3, 2, INPUTS, dtype=torch.float64), torch.rand(3, NEURONS, dtype=torch.float64)

    def last(solver, steps):
        return make(membrane_kind, solver, adaptive, steps=steps, step_size=0.8 / steps)(u, x, 0.7)[1]

    exact = last(Solver.runge_kutta, 100)
    for solver in set(Solver) - {Solver.runge_kutta}:
        coarse, fine = ((last(solver, steps) - exact).abs().max() for steps in (50, 200))
        assert fine < 0.01 * exact.abs().max()
        assert 3 < coarse / fine < 5.5, "the error of a first-order solver falls with h"


@torch.no_grad()
def test_liquid_time_constants_stay_within_theorem_1(membrane_kind):
    """C / (g_leak + all synapses open) <= tau_sys <= C / g_leak, and both ends are reached."""
    cell = make(membrane_kind)
    leak, most = leak_and_most(cell)
    states = 1e3 * torch.randn(4, 50, NEURONS, dtype=torch.float64)
    constants = cell.time_constants(1e3 * torch.randn(4, 50, INPUTS, dtype=torch.float64), states)
    assert (constants >= cell.capacitance / most * (1 - 1e-12)).all()
    assert (constants <= cell.capacitance / leak * (1 + 1e-12)).all()
    assert (constants.amax((0, 1)) > 1.2 * constants.amin((0, 1))).all(), "they move with the input"


@torch.no_grad()
def test_frozen_time_constants_do_not_move(membrane_kind):
    cell = make(membrane_kind, adaptive=False)
    leak, _ = leak_and_most(cell)
    states = 10 * torch.randn(2, 5, NEURONS, dtype=torch.float64)
    constants = cell.time_constants(10 * torch.randn(2, 5, INPUTS, dtype=torch.float64), states)
    assert_close(constants, (cell.capacitance / leak).expand_as(constants))


@pytest.mark.parametrize("solver", Solver)
@torch.no_grad()
def test_frozen_cell_is_linear_in_the_state_given_the_currents(membrane_kind, solver):
    """And a liquid one is not: its conductances multiply the state."""
    x, y = torch.randn(2, 1, NEURONS, dtype=torch.float64)
    drive_of = torch.randn(1, 1, INPUTS, dtype=torch.float64)
    h = torch.tensor([[0.3]], dtype=torch.float64)

    def curvature(adaptive):
        cell = make(membrane_kind, solver, adaptive)
        membrane = cell.membrane(cell.project(drive_of)[:, 0])
        current = membrane(x)[1]

        def advance(state):
            return integrate(solver, lambda s: (membrane(s)[0] + 0 * s, current), state, cell.capacitance, h, 2)

        return (advance(0.3 * x + 0.7 * y) - 0.3 * advance(x) - 0.7 * advance(y)).abs().max()

    assert curvature(adaptive=False) < 1e-12
    assert curvature(adaptive=True) > 1e-4


@torch.no_grad()
def test_frozen_and_liquid_cells_have_equal_currents_and_leak(membrane_kind):
    u, x = torch.randn(2, 1, INPUTS, dtype=torch.float64), torch.rand(2, NEURONS, dtype=torch.float64)
    liquid, frozen = (make(membrane_kind, adaptive=a) for a in (True, False))
    (more, current), (leak, same) = (c.membrane(c.project(u)[:, 0])(x) for c in (liquid, frozen))
    assert_close(current, same)
    assert (more > leak).all()


class TestInitialisation:
    """Time constants at the start are what the docstrings say, in a layer of the usual width."""

    @staticmethod
    def at_rest(cell):
        torch.manual_seed(0)
        u = torch.zeros(1, 1, cell.input_size)
        return cell.time_constants(u, torch.zeros(1, 1, cell.hidden_size)).flatten()

    @torch.no_grad()
    def test_full(self):
        cell = FullLTC(256, 256)
        tau = self.at_rest(cell)
        assert 0.26 < tau.min() < 0.3
        assert 1.5 < tau.max() < 1.7
        cell.input.bias.fill_(-100)
        closed = self.at_rest(cell)
        assert TAU_RANGE[0] <= closed.min() < 1.2 * TAU_RANGE[0]
        assert 0.8 * TAU_RANGE[1] < closed.max() <= TAU_RANGE[1]
        assert set(cell.reversal.tolist()) == {REVERSAL, -REVERSAL}

    @torch.no_grad()
    def test_diagonal(self):
        for steps, step_size in ((6, 1 / 6), (4, 1.0)):
            horizon = steps * step_size
            tau = self.at_rest(DiagonalLTC(256, 256, steps=steps, step_size=step_size))
            assert horizon / 6 <= tau.min() < horizon / 4
            assert 14 * horizon < tau.max() <= 20 * horizon

    @pytest.mark.parametrize("width", [8, 256])
    @torch.no_grad()
    def test_synaptic(self, width):
        tau = self.at_rest(SynapticLTC(width, width))
        assert tau.min() > 0.05
        assert tau.max() < 2


@pytest.mark.parametrize("coupling", ["diagonal", "full", "cfc"])
def test_a_hook_on_the_input_projection_runs(coupling):
    """Also where a kernel of our own would take the weights and pass the module by."""
    cell = build_layer(ModelConfig.parse({"input_size": 2, "hidden_size": 256, "coupling": coupling}), 64, 256)
    layer = cell.forms[0].input if coupling == "cfc" else cell.input
    seen, u = [], torch.randn(8, 64, 64)
    handle = layer.register_forward_hook(lambda _, given, out: seen.append(tuple(out.shape[:2])))
    watched = cell(u)[0]
    handle.remove()
    assert seen == [(8, 64)]
    torch.testing.assert_close(cell(u)[0], watched, rtol=1e-4, atol=1e-5)
