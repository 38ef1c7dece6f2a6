"""Effective timescales: a leaky neuron decays with its time constant."""

import numpy as np
import pytest
import torch
from analysis_networks import network

from ltc_textgen.analysis import effective_timescale
from ltc_textgen.errors import DataError
from ltc_textgen.model.network import LiquidNetwork

IDS = torch.randint(11, (1, 700), generator=torch.Generator().manual_seed(0))


def test_a_leaky_neuron_decays_to_half_in_ln_2_time_constants() -> None:
    model = network("plain diagonal", adaptive=False, num_layers=1, solver="exponential")
    (layer,) = model.stack()
    planted = torch.logspace(0.5, 2, layer.cell.hidden_size)
    with torch.no_grad():
        layer.cell.log_leak.zero_()
        layer.cell.log_capacitance.copy_(planted.log())
    found = effective_timescale(model, IDS, segments=8, length=200, context=100)
    np.testing.assert_allclose(found.half_distance[0], planted * np.log(2), rtol=1e-3)
    np.testing.assert_allclose(found.tau[0], planted, rtol=1e-5)
    assert found.correlation[0] == 1.0


def test_every_coupling_has_curves(every: LiquidNetwork) -> None:
    found = effective_timescale(every, IDS, segments=4, length=20, context=30)
    for layer in range(2):
        assert found.curve[layer].shape == (21, every.settings.neurons)
        assert np.isfinite(found.curve[layer]).all()
        assert (found.half_distance[layer] >= 0).all()


def test_a_neuron_that_does_not_decay_has_no_half_distance() -> None:
    from ltc_textgen.analysis.timescales import half_distance

    curve = np.array([[4.0, 4.0, 0.0], [1.0, 3.0, 0.0], [3.0, 3.0, 0.0], [1.0, 3.0, 0.0]])
    np.testing.assert_allclose(half_distance(curve), [2 + np.log(1.5) / np.log(3), np.inf, 0.0])


def test_short_texts_are_rejected() -> None:
    with pytest.raises(DataError):
        effective_timescale(network(), IDS[:, :99], segments=2, length=40, context=30)
