"""Jacobians are the derivatives of the recurrence; exponents are their mean growth."""

import numpy as np
import pytest
import torch
from analysis_networks import network

from ltc_textgen.analysis import jacobian, lyapunov
from ltc_textgen.errors import UsageError
from ltc_textgen.model.network import LiquidNetwork

DOUBLE = {"rtol": 1e-4, "atol": 1e-6}


def by_differences(model: LiquidNetwork, ids: torch.Tensor) -> list[np.ndarray]:
    """Central differences of the state of each layer after the last token by the one before it."""
    _, before = model.advance(ids[:, :-1])
    found = []
    for layer, neurons in enumerate(before.neurons):
        columns = []
        for index in range(neurons.shape[1]):
            ends = []
            for step in (1e-6, -1e-6):
                moved = list(before.neurons)
                moved[layer] = neurons.clone()
                moved[layer][0, index] += step
                state = type(before)(tuple(moved), before.conv_state)
                ends.append(model.advance(ids[:, -1:], state)[1].neurons[layer][0])
            columns.append((ends[0] - ends[1]) / 2e-6)
        found.append(torch.stack(columns, dim=1).detach().numpy())
    return found


@pytest.mark.slow
def test_jacobians_are_the_derivatives_of_a_token(every: LiquidNetwork, ids: torch.Tensor) -> None:
    model, ids = every.double(), ids[:, :9]
    for ours, theirs in zip(jacobian(model, ids), by_differences(model, ids), strict=True):
        last = np.diag(ours[-1]) if ours.ndim == 2 else ours[-1]
        np.testing.assert_allclose(last, theirs, **DOUBLE)


def test_exponents_of_a_leaky_layer_are_its_rates(ids: torch.Tensor) -> None:
    model = network("plain diagonal", adaptive=False, num_layers=1, solver="exponential")
    (layer,) = model.stack()
    with torch.no_grad():
        layer.cell.log_leak.zero_()
        layer.cell.log_capacitance.copy_(torch.linspace(0, 3, layer.cell.hidden_size))
    (rates,) = lyapunov(model, ids)
    np.testing.assert_allclose(rates, np.sort(-np.exp(-np.linspace(0, 3, len(rates))))[::-1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "synaptic", "pure cfc"])
def test_exponents_add_up_to_the_growth_of_volume(kind: str, ids: torch.Tensor) -> None:
    """The sum of all exponents is the mean log |det J|, exactly."""
    model = network(kind, num_layers=1).double()
    (rates,), (slopes,) = lyapunov(model, ids, skip=4), jacobian(model, ids)
    assert rates.sum() == pytest.approx(np.linalg.slogdet(slopes[4:])[1].mean(), rel=1e-6)
    assert np.all(np.diff(rates) <= 0)


@pytest.mark.slow
def test_leading_exponents_are_those_of_all(ids: torch.Tensor) -> None:
    model = network("full", num_layers=1).double()
    long = ids.repeat(1, 4)
    (every,), (leading,) = lyapunov(model, long), lyapunov(model, long, count=2)
    np.testing.assert_allclose(leading, every[:2], atol=0.05)


def test_chunks_do_not_matter_and_short_texts_are_rejected(ids: torch.Tensor) -> None:
    model = network("diagonal")
    with pytest.raises(UsageError):
        lyapunov(model, ids[:, :16])
    long = ids.repeat(1, 20)
    (slopes, _), (rates, _) = jacobian(model, long), lyapunov(model, long)
    assert slopes.shape == (600, model.settings.neurons)
    expected = np.sort(np.log(np.abs(slopes[16:])).mean(axis=0))[::-1]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
