"""A planted neuron is found first; random labels find nothing."""

import numpy as np
import pytest
from analysis_networks import made_trace

from ltc_textgen.analysis import Neuron, find
from ltc_textgen.errors import DataError, UsageError

TOKENS, NEURONS, SEEDS = 2000, 150, range(5)


def wandering(draw: np.random.Generator) -> np.ndarray:
    """Neurons that drift, as those of a network do: neighbouring tokens are alike."""
    states = draw.standard_normal((TOKENS, NEURONS))
    for t in range(1, TOKENS):
        states[t] = 0.9 * states[t - 1] + states[t]
    return states


def spans(draw: np.random.Generator) -> np.ndarray:
    """A label that is on for some tokens, off for some others, as quotations are."""
    lengths = draw.integers(5, 40, 200)
    return np.repeat(np.arange(200) % 2, lengths)[:TOKENS].astype(float)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_neuron_is_first(seed: int, sign: int) -> None:
    draw = np.random.default_rng(seed)
    first, second, label = wandering(draw), wandering(draw), spans(draw)
    second[:, 7] += 4 * sign * label
    found = find(made_trace(["a"] * TOKENS, first, second), label, seed=seed)
    assert found.neurons[0] == Neuron(1, 7)
    assert found.sign[0] == sign
    assert found.best > 0.85 > found.baseline.max()
    assert found.p_value == pytest.approx(0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_labels_give_nothing(seed: int) -> None:
    draw = np.random.default_rng(seed)
    found = find(made_trace(["a"] * TOKENS, wandering(draw)), spans(draw), seed=seed)
    assert found.p_value > 0.05


def test_the_second_half_has_no_say_in_the_choice() -> None:
    draw = np.random.default_rng(0)
    states, label = wandering(draw), spans(draw)
    states[: TOKENS // 2, 3] += 9 * label[: TOKENS // 2]
    found = find(made_trace(["a"] * TOKENS, states), label)
    assert found.neurons[0] == Neuron(0, 3)
    assert found.best < 0.7


def test_auc_is_the_probability_of_the_right_order() -> None:
    draw = np.random.default_rng(3)
    label = (draw.random(60) < 0.4).astype(float)
    values = draw.integers(0, 5, (60, 1)).astype(float)  # with ties
    found = find(made_trace(["a"] * 60, values), label, shifts=1)
    half = slice(30, 60)
    ones, zeros = (values[half, 0][label[half] == kind] for kind in (1, 0))
    pairs = np.sign(ones[:, None] - zeros[None, :])
    assert found.best == pytest.approx(0.5 + found.sign[0] * pairs.mean() / 2)


def test_numbers_are_cut_at_their_median_and_nan_is_left_out() -> None:
    draw = np.random.default_rng(0)
    states, label = wandering(draw), np.tile(np.arange(50.0), TOKENS // 50)
    states[:, 1] = label
    label[::10] = np.nan
    found = find(made_trace(["a"] * TOKENS, states), label)
    assert found.neurons[0] == Neuron(0, 1)
    assert found.best == 1.0
    assert found.threshold == np.nanmedian(label)


def test_a_label_that_is_hardly_there_is_rejected() -> None:
    seen = made_trace(["a"] * 100, np.zeros((100, 2)))
    with pytest.raises(DataError):
        find(seen, np.zeros(100))
    with pytest.raises(DataError):
        find(seen, np.full(100, np.nan))
    with pytest.raises(UsageError):
        find(seen, np.zeros(99))
