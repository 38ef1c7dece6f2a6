"""The Triton kernels against the sequential scan. Run by test_triton_scan.py in a process of its own.

Triton decides when it is imported whether kernels are compiled for a GPU or interpreted with numpy.
"""

import pytest
import torch
from test_newton_scan import gradients, in_order, problem

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.reference import DiagonalParameters
from ltc_textgen.kernels.triton_scan import BLOCK, _scan, _scan_backward, triton_scan
from ltc_textgen.solvers import Method

SOLVERS = list(Solver)


def on_gpu(drive, x0, dt, *rest):
    """`triton_scan` of arguments in a row, as `problem` makes them, and a method."""
    return triton_scan(drive, x0, dt, DiagonalParameters(*rest[:4]), Method(*rest[4:]))


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize(("solver", "steps", "batch"), [*((solver, 3, 1) for solver in SOLVERS), (SOLVERS[0], 1, 2)])
def test_states_and_gradients_equal_the_sequential_scan(solver, steps, batch, adaptive):
    arguments, method = problem(tokens=3, batch=batch, neurons=BLOCK + 3), (steps, solver, adaptive)
    states, last = on_gpu(*arguments, *method)
    expected, expected_last = in_order(*arguments, *method)
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(last, expected_last, rtol=1e-12, atol=1e-14)
    ours, theirs = (gradients(scan, arguments, method) for scan in (on_gpu, in_order))
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32(solver):
    arguments, method = problem(tokens=4, batch=1, neurons=4), (2, solver, True)
    expected = in_order(*arguments, *method)[0]
    single = tuple(tensor.float() for tensor in arguments)
    states, _ = on_gpu(*single, *method)
    assert states.dtype == torch.float32
    assert (states - expected).abs().max() <= 1e-5 * expected.abs().max()
    for mine, wanted in zip(gradients(on_gpu, single, method), gradients(in_order, arguments, method), strict=True):
        assert (mine - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_elapsed_time_of_zero_keeps_the_state_to_the_bit():
    drive, x0, dt, *rest = (tensor.float() for tensor in problem(tokens=3, batch=2, neurons=7))
    for solver in SOLVERS:
        states, _ = on_gpu(drive, x0, dt * 0, *rest, 2, solver, True)
        assert torch.equal(states, x0[:, None].expand_as(states))


@pytest.mark.parametrize("solver", [Solver.semi_implicit, Solver.exponential])
def test_extreme_inputs_stay_finite_and_bounded(solver):
    drive, x0, dt, *rest = (tensor.float() for tensor in problem(tokens=3, batch=2, neurons=7))
    arguments = (drive * 1e5, x0, dt * 1e6, *rest)
    states, _ = on_gpu(*arguments, 2, solver, True)
    assert states.abs().max() <= 1.5
    assert all(torch.isfinite(gradient).all() for gradient in gradients(on_gpu, arguments, (2, solver, True)))


def test_a_slow_membrane_needs_the_series_of_the_exponential_solver():
    drive, x0, dt, *rest = problem(tokens=3, batch=2, neurons=7)
    arguments, method = (drive - 25, x0, dt * 1e-3, *rest), (2, Solver.exponential, True)
    ours, theirs = (gradients(scan, arguments, method) for scan in (on_gpu, in_order))
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("long", [1e6, 1e30])
def test_the_gradient_at_equilibrium_is_that_of_the_equilibrium(long):
    drive, x0, dt, *rest = problem(tokens=2, batch=1, neurons=4)
    arguments, method = (drive, x0, torch.full_like(dt, long), *rest), (2, Solver.exponential, True)
    single = tuple(tensor.float() for tensor in arguments)
    theirs = gradients(in_order, arguments, method)
    for mine, wanted in zip(gradients(on_gpu, single, method), theirs, strict=True):
        assert (mine - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-5


def test_any_strides_and_the_same_bits_again():
    drive, x0, dt, *rest = problem(tokens=4, batch=3, neurons=5)
    strided = (drive.transpose(0, 1).contiguous().transpose(0, 1), x0.t().contiguous().t(), dt[:1].expand(3, 4), *rest)
    dense, method = tuple(tensor.contiguous() for tensor in strided), (2, Solver.semi_implicit, True)
    assert torch.equal(on_gpu(*strided, *method)[0], on_gpu(*dense, *method)[0])
    for mine, again in zip(gradients(on_gpu, strided, method), gradients(on_gpu, dense, method), strict=True):
        assert torch.equal(mine, again)


def test_operators_are_registered_as_pytorch_wants_them():
    arguments = tuple(tensor.requires_grad_() for tensor in problem(tokens=3, batch=2, neurons=3))
    torch.library.opcheck(_scan, (*arguments, 2, 0, True))
    states = _scan(*arguments, 2, 0, True).detach()
    plain = [tensor.detach() for tensor in arguments]
    torch.library.opcheck(_scan_backward, (torch.ones_like(states), states, *plain, 2, 0, True))


def test_bad_arguments_are_rejected():
    drive, x0, dt, *rest = problem(tokens=3, batch=2, neurons=3)
    method = (1, Solver.explicit, True)
    with pytest.raises(UsageError, match=r"dt: expected \(2, 3\), torch.float64, cpu, got \(2, 4\)"):
        on_gpu(drive, x0, torch.ones(2, 4, dtype=torch.float64), *rest, *method)
    with pytest.raises(UsageError, match=r"x0: expected .*float64.* got .*float32"):
        on_gpu(drive, x0.float(), dt, *rest, *method)
    with pytest.raises(UsageError, match="expected float32 or float64, got torch.float16"):
        on_gpu(drive.half(), x0, dt, *rest, *method)
    with pytest.raises(UsageError, match=r"drive: expected \(B, T, 2 N\)"):
        on_gpu(drive[:, :0], x0, dt, *rest, *method)
    with pytest.raises(UsageError, match="steps: expected 1 or more, got 0"):
        on_gpu(drive, x0, dt, *rest, 0, Solver.explicit, True)
