import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ltc_textgen.config import SamplingConfig
from ltc_textgen.generation.sampling import (
    DRAW_BLOCK,
    LogitsError,
    UniformStreams,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize,
    sample_seed,
    shape_logits,
    temper,
)


def random_logits(batch=4, vocabulary=50, seed=0):
    return torch.randn(batch, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def seen_mask(ids, vocabulary):
    return torch.zeros(ids.shape[0], vocabulary, dtype=torch.bool).scatter(1, ids, True)


@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.05])
@pytest.mark.parametrize("min_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.7, 0.6])
def test_order_and_results_are_those_of_transformers(top_k, top_p, min_p, penalty):
    logits = random_logits(batch=20)
    history = torch.randint(0, 50, (20, 30), generator=torch.Generator().manual_seed(1))
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(0.7)])
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p:
        theirs.append(MinPLogitsWarper(min_p))
    expected = theirs(history, logits.clone()).softmax(dim=1)

    sampling = SamplingConfig(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    ours = shape_logits(logits, sampling, seen_mask(history, 50)).softmax(dim=1)

    assert torch.equal(ours > 0, expected > 0)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_filters_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(x):
        return (x > -math.inf)[0].tolist()

    assert kept(keep_top_k(logits, 2)) == [True, True, False, False]
    assert kept(keep_top_k(torch.tensor([[1.0, 1.0, 0.0]]), 1)) == [True, True, False]
    assert kept(keep_top_p(logits, 0.6)) == [True, True, False, False]
    assert kept(keep_top_p(logits, 0.9)) == [True, True, True, False]
    assert kept(keep_top_p(logits, 1e-9)) == [True, False, False, False]
    assert kept(keep_top_p(logits, 1e-300)) == [True, False, False, False]
    assert kept(keep_min_p(logits, 0.31)) == [True, True, False, False]
    assert kept(keep_min_p(logits, 0.29)) == [True, True, True, False]
    assert kept(keep_min_p(logits, 1.0)) == [True, False, False, False]


def test_penalty_by_hand():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalize(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]
    assert penalize(logits, seen, 0.5).tolist() == [[4.0, -1.0, 2.0, -2.0]]


def test_functions_leave_their_input_alone():
    logits = random_logits()
    before = logits.clone()
    shape_logits(logits, SamplingConfig(top_k=3, top_p=0.5, min_p=0.1), torch.ones(4, 50, dtype=torch.bool))
    assert torch.equal(logits, before)


def test_any_temperature_gives_a_distribution():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    for temperature in (1e-30, 1e-3, 1.0, 100.0):
        probability = temper(logits, temperature).softmax(dim=1)
        assert torch.isfinite(probability).all()
        assert probability.argmax() == 0


def test_temperature_zero_is_greedy_after_the_penalty():
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    seen = torch.tensor([[True, False, False]])
    sampling = SamplingConfig(temperature=0, repetition_penalty=2.0, top_k=1)
    assert shape_logits(logits, sampling, seen).argmax(dim=1).tolist() == [1]
    assert shape_logits(logits, sampling).argmax(dim=1).tolist() == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_broken_logits_are_named(bad, temperature):
    logits = random_logits(batch=3)
    logits[1, 7] = bad
    with pytest.raises(LogitsError, match="sample 1"):
        shape_logits(logits, SamplingConfig(temperature=temperature))


def test_forbidden_tokens_are_allowed_but_not_all():
    logits = random_logits(batch=1)
    logits[0, 5:] = -math.inf
    shaped = shape_logits(logits, SamplingConfig(top_k=20, top_p=0.99, min_p=0.001))
    uniform = torch.linspace(0, 1 - 1e-9, 200, dtype=torch.float64)
    assert draw(shaped.expand(200, -1), uniform).max() < 5
    logits[:] = -math.inf
    with pytest.raises(LogitsError):
        shape_logits(logits, SamplingConfig())


def test_draw_inverts_the_distribution():
    logits = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25]]).log()
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(6, -1), uniform).tolist() == [1, 1, 2, 2, 4, 4]


@pytest.mark.slow
def test_draws_have_the_right_frequencies():
    probability = torch.tensor([0.6, 0.3, 0.1])
    streams = UniformStreams(seed=3, samples=range(1))
    uniform = torch.cat([streams.next() for _ in range(20_000)])
    counts = draw(probability.log().expand(20_000, -1), uniform).bincount(minlength=3) / 20_000
    torch.testing.assert_close(counts, probability, atol=0.015, rtol=0)


@given(
    vocabulary=st.integers(1, 300),
    scale=st.floats(0, 100),
    seed=st.integers(0, 2**32),
    number=st.floats(0, 1, exclude_max=True),
    top_k=st.integers(0, 400),
    top_p=st.floats(1e-6, 1),
    min_p=st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_what_is_drawn_was_kept(vocabulary, scale, seed, number, top_k, top_p, min_p):
    logits = random_logits(2, vocabulary, seed) * scale
    shaped = shape_logits(logits, SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p))
    token = draw(shaped, torch.full((2,), number, dtype=torch.float64))
    assert bool((shaped.gather(1, token[:, None]) > -math.inf).all())
    assert bool((shaped.amax(1) == 0).all())


def take(streams, count):
    return torch.stack([streams.next() for _ in range(count)], dim=1)


def test_streams_do_not_depend_on_their_neighbours():
    count = DRAW_BLOCK * 2 + 10
    together = take(UniformStreams(11, range(4)), count)
    for sample in range(4):
        alone = take(UniformStreams(11, range(sample, sample + 1)), count)
        assert torch.equal(alone[0], together[sample])

    streams = UniformStreams(11, range(4))
    head = take(streams, 100)
    streams.keep([1, 3])
    assert torch.equal(torch.cat([head[[1, 3]], take(streams, count - 100)], dim=1), together[[1, 3]])


def test_streams_differ_between_samples_and_seeds():
    numbers = [take(UniformStreams(seed, range(2)), 50) for seed in (0, 1, 2**63 - 1)]
    rows = torch.cat(numbers)
    assert len({tuple(row.tolist()) for row in rows}) == 6
    assert 0 <= rows.min() < rows.max() < 1
    assert len({sample_seed(seed, sample) for seed in range(30) for sample in range(30)}) == 900


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_ignored_eos_token_is_never_likely(temperature: float) -> None:
    logits = torch.tensor([[1.0, 9.0, 2.0], [0.0, 5.0, -1.0]])
    sampling = SamplingConfig(temperature=temperature, ignore_eos=True, top_k=1)
    shaped = shape_logits(logits, sampling, None, 1)
    assert shaped[:, 1].tolist() == [-math.inf, -math.inf]
    assert shaped.argmax(dim=1).tolist() == [2, 0]
    kept = shape_logits(logits, sampling.model_copy(update={"ignore_eos": False}), None, 1)
    assert kept.argmax(dim=1).tolist() == [1, 1]
    with pytest.raises(LogitsError):
        shape_logits(torch.tensor([[-math.inf, 1.0]]), sampling, None, 1)
