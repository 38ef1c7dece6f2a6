"""The fused CPU kernels give what the reference gives: outputs, last state and every gradient."""

import itertools
import time

import pytest
import torch
from fused_cases import KINDS, SETS, Case, build, disagreements

from ltc_textgen.config import Solver
from ltc_textgen.kernels import dispatch, library

pytestmark = pytest.mark.skipif(not SETS, reason=f"no CPU kernels here: {library.WHY_NOT}")

SHAPES = [(3, 5, 37), (1, 1, 1), (2, 7, 18), (37, 3, 64)]


@pytest.fixture
def instruction_set(request):
    assert library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set(SETS[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", list(Solver))
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("steps", [1, 6])
def test_equals_the_float64_reference(kind, solver, adaptive, steps):
    torch.manual_seed(0)
    for batch, tokens, neurons in SHAPES:
        cell = build(kind, neurons, solver=solver, adaptive=adaptive, steps=steps)
        case = Case.draw(kind, batch, tokens, neurons)
        reference = case.run(cell, "reference", torch.float64)
        assert disagreements(case.run(cell), reference) == {}, (batch, tokens, neurons)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", [Solver.semi_implicit, Solver.exponential])
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_longest_times_there_are_end_at_equilibrium(kind, solver, adaptive):
    """h G and h / C are beyond float32 there; the states stay inside their bounds, and gradients are numbers."""
    torch.manual_seed(4)
    for longest, steps in itertools.product((1e20, 1e30, 3.4e38), (1, 2)):
        cell = build(kind, 18, solver=solver, adaptive=adaptive, steps=steps)
        case = Case.draw(kind, 3, 4, 18)
        case.elapsed[:, 1:3] = longest
        reference = case.run(cell, "reference", torch.float64)
        assert disagreements(case.run(cell), reference) == {}, (longest, steps)
        single = case.run(cell, "reference")
        assert all(bool(tensor.isfinite().all()) for tensor in single.values()), (longest, steps)
        if kind == "diagonal":
            assert disagreements(case.run(cell, "parallel"), single) == {}, (longest, steps)


@pytest.mark.parametrize("instruction_set", SETS, indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set_equals_the_reference(instruction_set, kind):
    torch.manual_seed(1)
    for solver, neurons in itertools.product(Solver, (5, 35)):
        cell, case = build(kind, neurons, solver=solver, steps=2), Case.draw(kind, 9, 3, neurons)
        assert disagreements(case.run(cell), case.run(cell, "reference", torch.float64)) == {}, (solver, neurons)


@pytest.mark.parametrize("solver", list(Solver))
def test_absent_synapses_have_no_effect_and_no_gradient(solver):
    torch.manual_seed(2)
    cell, case = build("synaptic", 40, sparse=True, solver=solver, steps=2), Case.draw("synaptic", 5, 4, 40)
    absent = ~cell.recurrent.mask
    assert absent.float().mean() > 0.5
    with torch.no_grad():
        cell.recurrent.reversal[absent] = 1e3
    results = case.run(cell)
    assert disagreements(results, case.run(cell, "reference", torch.float64)) == {}
    for name in ("raw_weight", "sigma", "mu", "reversal"):
        assert not results[f"gradient of recurrent.{name}"][absent].any()


def test_the_inputs_synapses_equal_the_reference():
    torch.manual_seed(3)
    cell, u = build("synaptic", 21), torch.randn(3, 13, 3)
    weight = torch.randn(3, 13, 42)
    results = []
    for choice, dtype in (("auto", torch.float32), ("reference", torch.float64)):
        cell, values = cell.to(dtype), u.detach().to(dtype).requires_grad_()
        cell.zero_grad()
        with dispatch.use(choice):
            drive = cell.project(values)
        (drive * weight.to(dtype)).sum().backward()
        gradients = {f"gradient of {n}": p.grad.clone() for n, p in cell.sensory.named_parameters()}
        results.append({"drive": drive.detach(), "gradient of u": values.grad, **gradients})
    assert disagreements(*results) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", list(Solver))
def test_no_time_leaves_the_state_as_it_is(kind, solver):
    case = Case.draw(kind, 3, 4, 18)
    case.elapsed[1] = 0.0
    states = case.run(build(kind, 18, solver=solver))["states"]
    assert torch.equal(states[1], case.x[1].expand(4, 18))
    assert not torch.equal(states[0, -1], case.x[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", list(Solver))
def test_chunks_rows_and_single_tokens_give_the_same_bits(kind, solver):
    cell, case = build(kind, 37, solver=solver, steps=3), Case.draw(kind, 11, 6, 37)
    with torch.no_grad():
        states, last = cell.scan(case.drive, case.x, case.elapsed)
        assert torch.equal(states[:, -1], last)
        x, pieces = case.x, []
        for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
            piece, x = cell.scan(case.drive[:, part], x, case.elapsed[:, part])
            pieces.append(piece)
        assert torch.equal(torch.cat(pieces, 1), states)
        alone, _ = cell.scan(case.drive[4:5], case.x[4:5], case.elapsed[4:5])
        assert torch.equal(alone, states[4:5])


@pytest.mark.parametrize("kind", KINDS)
def test_same_threads_same_bits(kind):
    cell, case = build(kind, 64), Case.draw(kind, 16, 40, 64)
    first, again = case.run(cell), case.run(cell)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_one_thread_gives_the_same_states_and_gradients(kind):
    cell, case = build(kind, 64), Case.draw(kind, 16, 40, 64)
    many, threads = case.run(cell), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = case.run(cell)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(many["states"], one["states"])
    assert disagreements(many, one) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_last_state_alone(kind):
    cell, case = build(kind, 20), Case.draw(kind, 2, 3, 20)
    case.states_weight.zero_()
    full = case.run(cell)
    x = case.x.clone().requires_grad_()
    _, last = cell.scan(case.drive, x, case.elapsed)
    (gradient,) = torch.autograd.grad((last * case.last_weight).sum(), x)
    torch.testing.assert_close(gradient, full["gradient of x"])


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_any_stride(kind):
    cell, case = build(kind, 20), Case.draw(kind, 4, 5, 20)
    expected = case.run(cell)
    case.drive = case.drive.transpose(0, 1).contiguous().transpose(0, 1)
    case.x = case.x.t().contiguous().t()
    case.elapsed = torch.stack([case.elapsed, case.elapsed])[1]
    assert not case.drive.is_contiguous()
    results = case.run(cell)
    assert all(torch.equal(results[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_far_outside_comes_home(kind):
    cell, case = build(kind, 33, solver=Solver.semi_implicit), Case.draw(kind, 4, 3, 33)
    case.x, case.drive = 1e6 * case.x, 50 * case.drive
    results = case.run(cell)
    assert all(bool(torch.isfinite(value).all()) for value in results.values())
    assert disagreements(results, case.run(cell, "reference", torch.float64)).keys() <= {"gradient of drive"}


def test_long_sequences_of_one_use_every_core():
    """Tiles of neurons are shared out too: what other threads compute is more than a quarter of what one would alone.

    Each thread has its own clock, and the parts are fixed, so that it does not matter which core is free.
    """
    cell, case = build("diagonal", 256), Case.draw("diagonal", 1, 4096, 256)
    threads = torch.get_num_threads()
    if threads < 2:
        pytest.skip("one thread")

    def seconds(clock) -> float:
        start = clock()
        for _ in range(10):
            cell.scan(case.drive, case.x, case.elapsed)
        return clock() - start

    def of_others() -> float:
        return time.process_time() - time.thread_time()

    with torch.no_grad():
        cell.scan(case.drive, case.x, case.elapsed)
        others = seconds(of_others)
        try:
            torch.set_num_threads(1)
            alone = seconds(time.thread_time)
        finally:
            torch.set_num_threads(threads)
    assert others > 0.25 * alone
