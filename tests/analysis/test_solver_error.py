"""The error of a solver falls with its order, and leaves the network as it was."""

import numpy as np
import pytest
import torch
from analysis_networks import network

from ltc_textgen.analysis import solver_error, trace
from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError


@pytest.mark.parametrize(
    ("kind", "solver", "gain"),
    [
        ("diagonal", "semi_implicit", 1.7),
        ("full", "explicit", 1.7),
        ("full", "runge_kutta", 12),
        ("full", "semi_implicit", 1.7),
    ],
)
def test_errors_fall_with_the_order_of_the_solver(kind: str, solver: str, gain: float, ids: torch.Tensor) -> None:
    model = network(kind, num_layers=1).double()
    coarse, fine = solver_error(model, ids[:, :5], refinements=[4, 8], solvers=[Solver(solver)])
    assert (fine.solver, fine.steps, fine.step_size) == (solver, 16, 0.0625)
    assert coarse.state_error[0] / fine.state_error[0] > gain


def test_the_network_is_left_as_it_was(ids: torch.Tensor) -> None:
    model = network()
    before = trace(model, ids)
    (plain,) = solver_error(model, ids, refinements=[1])
    assert plain.loss == pytest.approx(before.loss)
    np.testing.assert_array_equal(trace(model, ids).surprise, before.surprise)


def test_a_closed_form_has_no_solver(ids: torch.Tensor) -> None:
    with pytest.raises(UsageError):
        solver_error(network("cfc"), ids)
