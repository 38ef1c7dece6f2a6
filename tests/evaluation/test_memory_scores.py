"""Scores with an n-gram memory: the protocols, and what they may know."""

import numpy as np
import pytest
import torch

from ltc_textgen.errors import DataError
from ltc_textgen.evaluation import score_tokens
from ltc_textgen.evaluation.memory_scores import build_memory, fit_mixture, score_with_memory
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.kernels.library import LIBRARY
from ltc_textgen.memory import Mixture
from ltc_textgen.model.network import CHUNK

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no compiled kernels here")
V = 12


@pytest.fixture(scope="module")
def network() -> LiquidTimeConstantNetwork:
    torch.manual_seed(0)
    return LiquidTimeConstantNetwork(V, hidden_size=8, steps=1, step_size=1.0)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Words of a small vocabulary over and over, which counts predict well."""
    rng = np.random.default_rng(0)
    words = [rng.integers(1, V, rng.integers(2, 6)) for _ in range(15)]
    return np.concatenate([np.append(words[i], 0) for i in rng.integers(0, 15, 900)]).astype(np.uint16)


@pytest.mark.parametrize("adapting", [True, False])
def test_the_memory_helps_a_network_that_has_learned_nothing(
    network: LiquidTimeConstantNetwork, text: np.ndarray, adapting: bool
) -> None:
    memory = build_memory(text[:2000], V, None, 5)
    entries = memory.entries
    mixture = fit_mixture(network, memory, text[1500:2000])
    assert memory.entries == entries
    scores = score_with_memory(network, text[2000:], mixture, adapting=adapting)
    assert scores.mixed < 0.8 * scores.network
    assert scores.memory < 0.8 * scores.network
    assert (memory.entries > entries) == adapting
    assert scores.tokens == len(text) - 2001


def test_the_networks_own_score_is_that_of_plain_scoring(network: LiquidTimeConstantNetwork, text: np.ndarray) -> None:
    part = text[: 2 * CHUNK + 77]
    scores = score_with_memory(network, part, Mixture.start(build_memory(text[:100], V, None, 3)), adapting=True)
    assert scores.network == pytest.approx(score_tokens(network, part)[0], rel=1e-6)
    assert scores.tokens == len(part) - 1


def test_an_empty_memory_alone_is_uniform(network: LiquidTimeConstantNetwork, text: np.ndarray) -> None:
    scores = score_with_memory(network, text[:50], Mixture.start(build_memory(text[:0], V, None, 3)), adapting=False)
    assert scores.memory == pytest.approx(scores.tokens * np.log(V), rel=1e-5)


def test_progress_reaches_the_end(network: LiquidTimeConstantNetwork, text: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []
    mixture = Mixture.start(build_memory(text[:100], V, None, 2))
    score_with_memory(
        network, text[:1500], mixture, adapting=False, progress=lambda done, all_: seen.append((done, all_))
    )
    assert seen[-1] == (1499, 1499)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_too_short_a_text_is_rejected(network: LiquidTimeConstantNetwork, text: np.ndarray) -> None:
    with pytest.raises(DataError):
        score_with_memory(network, text[:1], Mixture.start(build_memory(text, V, None, 2)), adapting=True)


def test_fitting_the_weights_helps_on_other_text(network: LiquidTimeConstantNetwork, text: np.ndarray) -> None:
    memory = build_memory(text[:1500], V, None, 5)
    fitted = score_with_memory(network, text[2500:], fit_mixture(network, memory, text[1500:2500]), adapting=False)
    plain = score_with_memory(network, text[2500:], Mixture.start(memory), adapting=False)
    assert fitted.mixed < plain.mixed
    assert fitted.memory == plain.memory


def test_adapting_leaves_the_fitted_weights_alone(network: LiquidTimeConstantNetwork, text: np.ndarray) -> None:
    mixture = fit_mixture(network, build_memory(text[:500], V, None, 4), text[500:700])
    before = mixture.weights.copy()
    score_with_memory(network, text[700:1200], mixture, adapting=True)
    assert (mixture.weights == before).all()
