"""Interventions: clamping to the own trajectory changes nothing; silencing what matters harms."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from analysis_networks import network

from ltc_textgen.analysis import Neuron, ablate, clamp, routing, tau_bands, trace
from ltc_textgen.analysis.interventions import quantile_bands
from ltc_textgen.errors import UsageError
from ltc_textgen.model.network import LiquidNetwork


def test_clamping_to_the_own_trajectory_changes_no_bit(every: LiquidNetwork, ids: torch.Tensor) -> None:
    seen = trace(every, ids)
    neurons = [Neuron(0, 0), Neuron(0, 3), Neuron(1, 5)]
    effect = clamp(every, seen, {neuron: seen.series(neuron) for neuron in neurons})
    np.testing.assert_array_equal(effect.after, seen.surprise)


def test_a_clamped_neuron_has_its_value_and_the_others_are_computed(every: LiquidNetwork, ids: torch.Tensor) -> None:
    seen = trace(every, ids)
    effect = clamp(every, seen, {"L0N2": 3.0})
    change = effect.change[1:]
    assert np.abs(change).max() > 1e-4
    assert effect.mean.change == pytest.approx(change.mean(), abs=1e-7)
    assert effect.mean.tokens == 29


def test_a_value_before_the_last_token_cannot_change_the_past(ids: torch.Tensor) -> None:
    model = network("full")
    seen = trace(model, ids)
    values = seen.series("L0N2").copy()
    values[20:] = 3.0
    change = clamp(model, seen, {"L0N2": values}).change
    assert not change[1:21].any()
    assert change[21:].all()


@pytest.mark.slow
def test_silencing_is_clamping_to_the_mean_or_to_zero(ids: torch.Tensor) -> None:
    model = network("synaptic")
    seen = trace(model, ids)
    for how, value in (("zero", 0.0), ("mean", float(seen.states[1][:, 5].mean(dtype=np.float64)))):
        np.testing.assert_array_equal(
            ablate(model, seen, ["L1N5"], how).after, clamp(model, seen, {"L1N5": value}).after
        )


def test_effects_are_split_by_groups() -> None:
    model = network()
    ids = torch.randint(11, (1, 30))
    seen = trace(model, ids)
    effect, groups = ablate(model, seen, ["L0N1"]), np.arange(30) % 3 - 1
    found = effect.by(groups)
    assert set(found) == {0.0, 1.0}
    assert found[1.0].change == pytest.approx(effect.change[groups == 1].mean(), abs=1e-7)
    assert found[1.0].tokens == 10
    with pytest.raises(UsageError):
        effect.by(groups[:-1])


def test_bands_hold_all_neurons_from_short_to_long(ids: torch.Tensor) -> None:
    model = network(hidden_size=12)
    seen = trace(model, ids)
    bands = tau_bands(seen, 4)
    assert len({neuron for band in bands for neuron in band}) == sum(seen.sizes) == sum(map(len, bands))
    medians = [[np.median(seen.series(neuron, "tau")) for neuron in band] for band in bands]
    assert all(max(a) <= min(b) for a, b in pairwise(medians))
    table = routing(model, seen, quantile_bands(seen.surprise, 2), bands=4)
    assert [list(row) for row in table] == [[0.0, 1.0]] * 4


def test_wrong_use_is_one_line(ids: torch.Tensor) -> None:
    model = network()
    seen = trace(model, ids)
    for call in (
        lambda: clamp(model, seen, {}),
        lambda: clamp(model, seen, {"L0N99": 1.0}),
        lambda: clamp(model, seen, {"L0N0": np.zeros(3)}),
        lambda: clamp(model, seen, {"L0N0": float("nan")}),
        lambda: clamp(network(seed=1), seen, {"L0N0": 0.0}),
        lambda: tau_bands(seen, 0),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert "\n" not in str(error.value)
