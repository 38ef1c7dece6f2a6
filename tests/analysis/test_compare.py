"""Two readings inside the network."""

import numpy as np
import torch
from analysis_networks import network

from ltc_textgen.analysis import compare, trace
from ltc_textgen.analysis.compare import state_distance
from ltc_textgen.model.network import LiquidNetwork


def test_the_same_text_is_at_distance_zero(every: LiquidNetwork, ids: torch.Tensor) -> None:
    for found in (compare(every, ids, ids), compare(every, ids, ids, then=ids[:, :9])):
        assert not any(layer.any() for layer in found.layers + found.bands)
        assert not np.nan_to_num(found.surprise).any()
    assert state_distance(every, every.read(ids), every.read(ids)) == [0.0, 0.0]


def test_distances_are_those_of_the_states(ids: torch.Tensor) -> None:
    model = network()
    other = ids.roll(5, 1)[:, :20]
    found, a, b = compare(model, ids, other, bands=3), trace(model, ids), trace(model, other)
    assert [len(layer) for layer in found.layers + found.bands] == [20] * 5
    expected = np.sqrt(((a.states[1][19] - b.states[1][19]) ** 2).mean())
    np.testing.assert_allclose(found.layers[1][19], expected, rtol=1e-5)
    sizes = [len(part) for part in np.array_split(np.arange(sum(a.sizes)), 3)]
    total = sum(size * band[19] ** 2 for size, band in zip(sizes, found.bands, strict=True))
    assert np.isclose(total, sum(a.sizes[i] * found.layers[i][19] ** 2 for i in range(2)))


def test_the_difference_of_contexts_decays(ids: torch.Tensor) -> None:
    model = network()
    found = compare(model, ids[:, :15], ids[:, 15:], then=ids.repeat(1, 20))
    assert found.layers[0][-1] < 0.01 * found.layers[0][0]
    assert state_distance(model, model.read(ids[:, :15]), model.read(ids[:, 15:]))[0] > 0
