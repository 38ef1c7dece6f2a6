import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltc_textgen.config import Coupling, ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import dispatch, newton_scan
from ltc_textgen.kernels.newton_scan import sequential_scan
from ltc_textgen.kernels.reference import DiagonalParameters
from ltc_textgen.layers.diagonal import DiagonalLTC
from ltc_textgen.solvers import Method

SOLVERS = list(Solver)


def in_parallel(drive, x0, dt, *rest):
    """`parallel_scan` of arguments in a row, as `problem` makes them, and a method."""
    return newton_scan.parallel_scan(drive, x0, dt, DiagonalParameters(*rest[:4]), Method(*rest[4:]))


def in_order(drive, x0, dt, *rest):
    """`sequential_scan` in the same way."""
    return sequential_scan(drive, x0, dt, DiagonalParameters(*rest[:4]), Method(*rest[4:]))


def problem(tokens=37, batch=3, neurons=5, feedback=0.5, dtype=torch.float64, seed=0):
    """Arguments of a scan: uneven elapsed times with zeros among them, and an initial state that is not zero."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, dtype=dtype, generator=draw)

    dt = uniform(0.05, 1.5, batch, tokens)
    dt[:, ::4] = 0
    return (
        2 * torch.randn(batch, tokens, 2 * neurons, dtype=dtype, generator=draw),
        uniform(-0.8, 0.8, batch, neurons),
        dt,
        uniform(-1, 1, 2, neurons) * feedback,
        uniform(0.3, 1.5, 2, neurons),
        uniform(2.5, 6, neurons),
        uniform(0.05, 0.5, neurons),
    )


def cell_scan(arguments, steps, solver, adaptive):
    """The readable loop of `DiagonalLTC`, with the given parameters."""
    drive, x0, dt, self_weight, reversal, capacitance, leak = arguments
    cell = DiagonalLTC(1, x0.shape[1], steps=steps, step_size=1.0, solver=solver, adaptive=adaptive).to(drive.dtype)
    with torch.no_grad():
        cell.self_weight.copy_(self_weight)
        cell.reversal.copy_(reversal)
        cell.log_capacitance.copy_(capacitance.log())
        cell.log_leak.copy_(leak.log())
        states, x = [], x0
        for t in range(drive.shape[1]):
            x = cell.step(drive[:, t], x, dt[:, t, None])
            states.append(x)
    return torch.stack(states, 1)


@pytest.fixture
def no_way_back(monkeypatch):
    """A scan that falls back to the loop over tokens fails."""
    monkeypatch.setattr(newton_scan, "sequential_scan", lambda *_: pytest.fail("fell back to the sequential scan"))


def gradients(scan, arguments, method):
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    states, last = scan(*leaves, *method)
    weights = torch.sin(torch.arange(states.numel(), dtype=states.dtype)).view_as(states)
    return torch.autograd.grad((weights * states).sum() + (last**2).sum(), leaves)


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tokens", [1, 2, 37, 64])
def test_equals_the_loop_of_the_cell(no_way_back, solver, adaptive, tokens):
    arguments = problem(tokens)
    states, last = in_parallel(*arguments, 3, solver, adaptive)
    torch.testing.assert_close(states, cell_scan(arguments, 3, solver, adaptive), rtol=1e-10, atol=1e-12)
    assert torch.equal(last, states[:, -1])
    zeros = arguments[2] == 0
    assert torch.equal(states[:, 0][zeros[:, 0]], arguments[1][zeros[:, 0]])


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_equal_those_of_the_sequential_scan(no_way_back, solver, adaptive):
    arguments, method = problem(), Method(3, solver, adaptive)
    ours = gradients(in_parallel, arguments, method)
    theirs = gradients(in_order, arguments, method)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_gradcheck(no_way_back, solver):
    arguments = [*problem(tokens=5, batch=2, neurons=2)]
    arguments[2] += 0.1  # finite differences would push an elapsed time of zero below zero
    arguments = [tensor.clone().requires_grad_() for tensor in arguments]
    assert torch.autograd.gradcheck(lambda *given: in_parallel(*given, 2, solver, True), arguments)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_slope_is_the_derivative_of_a_token(solver, adaptive):
    drive, x0, dt, *rest = problem(tokens=1, batch=40)
    rest[3][:2] = 1e-7  # a rate near zero, where the exponential solver's derivative needs its series
    neurons, method = DiagonalParameters(*rest), Method(4, solver, adaptive)
    x = x0.clone().requires_grad_()
    drive[: len(drive) // 2] -= 18
    h = dt[:, 0, None] + 0.01
    (expected,) = torch.autograd.grad(newton_scan.token(x, drive[:, 0], h, neurons, method).sum(), x)
    value, slope = newton_scan.token_with_slope(x0, drive[:, 0], h, neurons, method)
    torch.testing.assert_close(value, newton_scan.token(x0, drive[:, 0], h, neurons, method))
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_recurrence_that_does_not_contract_falls_back(monkeypatch):
    arguments = problem(tokens=200, feedback=60.0)
    calls = []

    def sequential(*given):
        calls.append(given)
        return sequential_scan(*given)

    monkeypatch.setattr(newton_scan, "sequential_scan", sequential)
    monkeypatch.setattr(newton_scan, "MAX_ITERATIONS", 6)
    method = Method(3, Solver.semi_implicit, False)
    states, _ = in_parallel(*arguments, *method)
    assert len(calls) == 1
    torch.testing.assert_close(states, in_order(*arguments, *method)[0])
    given = gradients(in_parallel, arguments, method)
    for mine, expected in zip(given, gradients(in_order, arguments, method), strict=True):
        torch.testing.assert_close(mine, expected)


def test_an_infinite_state_falls_back_to_the_same_answer(monkeypatch):
    tried = []
    once = newton_scan.token_with_slope
    monkeypatch.setattr(newton_scan, "token_with_slope", lambda *given: (tried.append(0), once(*given))[1])
    arguments = problem(tokens=40)
    diverging = (*arguments[:2], arguments[2] * 1e6, *arguments[3:])
    states, _ = in_parallel(*diverging, 2, Solver.explicit, True)
    expected, _ = in_order(*diverging, 2, Solver.explicit, True)
    assert not torch.isfinite(expected).all()
    torch.testing.assert_close(states, expected, equal_nan=True)
    assert 1 <= len(tried) < 4  # it gives up as soon as a guess is not finite


def test_bad_arguments_are_rejected():
    drive, x0, dt, *rest = problem(tokens=3, batch=2, neurons=3)
    with pytest.raises(
        UsageError, match=r"x0: expected \(2, 3\), torch.float64, cpu, got \(2, 3\), torch.float32, cpu"
    ):
        in_parallel(drive, x0.float(), dt, *rest, 1, Solver.explicit, True)


@pytest.mark.slow
def test_float32_stays_close_to_float64(no_way_back):
    arguments = problem(tokens=1000, neurons=8)
    expected, _ = in_order(*arguments, 2, Solver.semi_implicit, True)
    single = tuple(tensor.float() for tensor in arguments)
    states, _ = in_parallel(*single, 2, Solver.semi_implicit, True)
    assert states.dtype == torch.float32
    assert (states - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 29])
def test_linear_scan_solves_the_recurrence(tokens):
    slope, offset = torch.randn(2, 2, tokens, 3, dtype=torch.float64)
    x, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(tokens):
        x = slope[:, t] * x + offset[:, t]
        expected.append(x)
    torch.testing.assert_close(newton_scan.linear_scan(slope, offset), torch.stack(expected, 1))


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("solver", [Solver.semi_implicit, Solver.exponential])
def test_states_stay_inside_the_bounds_that_guesses_are_clamped_to(solver, adaptive):
    drive, x0, dt, *rest = problem(tokens=60, feedback=8.0)
    rest[1][:, ::2] *= -1
    method = Method(2, solver, adaptive)
    low, high = newton_scan.state_bounds(3 * x0, DiagonalParameters(*rest), method)
    states, _ = in_order(10 * drive, 3 * x0, 1e3 * dt, *rest, *method)
    assert ((states >= low - 1e-12) & (states <= high + 1e-12)).all()
    reached = torch.maximum((states - low).amin(), (high - states).amin())
    assert reached < 0.1  # the bounds are not merely generous
    assert newton_scan.state_bounds(x0, DiagonalParameters(*rest), Method(2, Solver.explicit, adaptive)) is None


def test_a_cpu_uses_it_only_if_set():
    drive = torch.empty(1, 100_000, 2)
    assert dispatch.choose(Coupling.diagonal, drive) != "parallel"
    with dispatch.use("parallel"):
        assert dispatch.choose(Coupling.diagonal, drive) == "parallel"
        assert dispatch.choose(Coupling.full, drive) == "reference"


def test_an_accelerator_without_fused_kernel_prefers_it_for_long_sequences(monkeypatch):
    newton = next(scan for scan in dispatch.SCANS if scan.path == "parallel")
    assert not newton.runs_on(torch.device("meta"))
    everywhere = newton._replace(runs_on=lambda device: device.type != "cpu")  # "meta" stands in for an accelerator
    monkeypatch.setattr(dispatch, "SCANS", (*dispatch.SCANS[:-1], everywhere))
    for tokens, path in ((newton.min_tokens, "parallel"), (newton.min_tokens - 1, "reference")):
        assert dispatch.choose(Coupling.diagonal, torch.empty(1, tokens, 2, device="meta")) == path
    assert dispatch.choose(Coupling.full, torch.empty(1, newton.min_tokens, 2, device="meta")) == "reference"


def test_the_cell_runs_it():
    cell = DiagonalLTC(3, 6)
    torch.nn.init.normal_(cell.self_weight)
    u, elapsed = torch.randn(2, 30, 3), torch.rand(2, 30)
    with dispatch.use("reference"):
        expected = cell(u, elapsed=elapsed)
    with dispatch.use("parallel"):
        states, last = cell(u, elapsed=elapsed)
    torch.testing.assert_close((states, last), expected)
    assert "Implicit" in type(states.grad_fn).__name__


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("solver", [Solver.semi_implicit, Solver.exponential])
def test_contractive_cells_contract(solver, adaptive):
    """200,000 neurons with parameters, inputs, steps and states drawn wide: none has a slope of 1 or more."""
    torch.manual_seed(1)
    count = 200_000
    cell = DiagonalLTC(1, count, solver=solver, adaptive=adaptive, contractive=True).double()
    with torch.no_grad():
        cell.reversal.normal_().mul_(10 ** torch.empty(2, count).uniform_(-2, 2))
        cell.self_weight.normal_().mul_(20)
        cell.log_capacitance.uniform_(-8, 4)
        cell.log_leak.uniform_(-5, 4)
        neurons = DiagonalParameters(cell.feedback, cell.reversal, cell.capacitance, cell.log_leak.exp())
        method = Method(1, solver, adaptive)
        low, high = newton_scan.state_bounds(torch.zeros(1, count, dtype=torch.float64), neurons, method)
        x = low[:, 0] + (high - low)[:, 0] * torch.rand(1, count, dtype=torch.float64)
        h = 10 ** torch.empty(1, 1, dtype=torch.float64).uniform_(-3, 3).expand(1, 1)
        drive = 4 * torch.randn(1, 2 * count, dtype=torch.float64)
        # Half of the draws sit where a synapse is half open, which is where its slope is largest.
        drive[:, ::2] = -(cell.feedback * x).flatten()[None, ::2]
        for size in (h, h * 0 + 0.1, h * 0 + 1e3):
            _, slope = newton_scan.token_with_slope(x, drive, size, neurons, method)
            assert slope.abs().max() < 1
            wild = neurons._replace(feedback=neurons.feedback * 8)
            assert newton_scan.token_with_slope(x, drive, size, wild, method)[1].abs().max() > 1


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(steps=st.integers(1, 4), step_size=st.floats(0.01, 20), seed=st.integers(0, 10_000))
def test_the_initial_state_of_contractive_cells_decays(steps, step_size, seed):
    torch.manual_seed(seed)
    cell = DiagonalLTC(3, 6, steps=steps, step_size=step_size, contractive=True).double()
    with torch.no_grad():
        cell.self_weight.normal_().mul_(5)
        cell.log_leak.uniform_(-1, 0)
        u = torch.randn(1, 60, 3, dtype=torch.float64)
        low, high = -torch.ones(1, 6, dtype=torch.float64), torch.ones(1, 6, dtype=torch.float64)
        gap = (cell(u, low)[0] - cell(u, high)[0]).abs()
    assert (gap[:, 1:] <= gap[:, :-1] + 1e-12).all()


def test_contractive_parameters_learn_and_start_linear():
    torch.manual_seed(0)
    cell = DiagonalLTC(3, 6, contractive=True)
    plain = DiagonalLTC(3, 6)
    plain.load_state_dict(cell.state_dict())
    u = torch.randn(2, 9, 3)
    torch.testing.assert_close(cell(u)[0], plain(u)[0])  # r = 0 at the start, with or without a bound
    cell(u)[0].square().sum().backward()
    assert cell.self_weight.grad.abs().min() > 0
    assert cell.feedback_bound().allclose(torch.tensor(0.5))


def test_contractive_needs_a_bounded_diagonal_cell():
    with pytest.raises(UsageError, match="explicit"):
        DiagonalLTC(3, 6, solver=Solver.explicit, contractive=True)
    with pytest.raises(UsageError, match="coupling.*full"):
        ModelConfig.parse({"input_size": 9, "contractive": True})
    with pytest.raises(UsageError, match="not runge_kutta"):
        ModelConfig.parse({"input_size": 9, "contractive": True, "coupling": "diagonal", "solver": "runge_kutta"})
    settings = ModelConfig(input_size=9, contractive=True, coupling="diagonal")
    assert DiagonalLTC.from_settings(settings, 3, 6).contractive
