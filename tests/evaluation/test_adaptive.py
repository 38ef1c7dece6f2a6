"""Dynamic evaluation and the continuous cache equal naive ones; the model stays; only the past is used."""

import math

import numpy as np
import pytest
import torch

from ltc_textgen.config import CacheConfig, DynamicConfig, ModelConfig
from ltc_textgen.errors import DataError, LTCError, UsageError
from ltc_textgen.evaluation import adaptive, score_tokens
from ltc_textgen.evaluation.adaptive import EPSILON, ContinuousCache, Learner, score_adaptively
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork

KINDS = [
    {},
    {"head": "adaptive", "adaptive_cutoffs": (10, 20)},
    {"tie_embeddings": True},
    {"coupling": "full", "block": "plain", "num_layers": 1},
]
IDS = ["full head", "adaptive head", "tied", "plain layer"]


def make_model(**more):
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "coupling": "diagonal", "block": "liquid", "num_layers": 2, "dropout": 0.5} | more
    return LiquidTimeConstantNetwork.from_settings(ModelConfig(input_size=30, **settings))


def text(length, seed=1):
    return np.random.default_rng(seed).integers(0, 30, length)


def chances(model, tokens):
    """Hidden vectors and log-probabilities, (T - 1, D) and (T - 1, V), in float64 from the hidden vectors on."""
    model.eval()
    with torch.no_grad():
        hidden, _ = model.advance(torch.tensor(tokens[None, :-1]))
        return hidden[0].double(), model.lm_head.logits(hidden[0]).double().log_softmax(1)


def cache_by_hand(model, tokens, size, theta, share):
    hidden, logs = chances(model, tokens)
    unit = hidden / hidden.norm(dim=1, keepdim=True)
    losses = []
    for t in range(len(tokens) - 1):
        places = range(max(0, t - size), t)
        weights = [math.exp(theta * float(unit[t] @ unit[i])) for i in places]
        mine = sum(w for w, i in zip(weights, places, strict=True) if tokens[i + 1] == tokens[t + 1])
        p = math.exp(float(logs[t, tokens[t + 1]]))
        losses.append(-math.log((1 - share) * p + share * mine / sum(weights) if weights else p))
    return losses


@pytest.mark.parametrize("more", KINDS, ids=IDS)
def test_the_cache_equals_a_slow_loop(more, monkeypatch):
    model, tokens = make_model(**more), text(60)
    expected = cache_by_hand(model, tokens, 25, 7.0, 0.3)
    for rows, chunk in ((2**22, 512), (100, 512), (2**22, 9)):
        monkeypatch.setattr(adaptive, "SIMILARITIES", rows)
        monkeypatch.setattr(adaptive, "CHUNK", chunk)
        scores = score_adaptively(model, tokens, cache=CacheConfig(size=25, theta=7.0, weight=0.3))
        assert scores.mixed == pytest.approx(sum(expected), rel=1e-5)
        assert scores.own == pytest.approx(score_tokens(model, tokens)[0], rel=1e-6)
        assert scores.tokens == 59


def dynamic_by_hand(model, tokens, config):
    """The formula at the head of the module, weight by weight in numpy."""
    twin = make_twin(model)
    names = [name for name, _ in twin.named_parameters()]
    first = {name: p.detach().clone() for name, p in twin.named_parameters()}
    squares = {name: torch.zeros_like(p) for name, p in first.items()}
    total, state = 0.0, None
    for segments, start in enumerate(range(0, len(tokens) - 1, config.segment), 1):
        part = torch.tensor(tokens[start : start + config.segment + 1])
        hidden, state = twin.advance(part[None, :-1], state)
        state = state.detach()
        loss = -twin.lm_head.logits(hidden[0]).log_softmax(1).gather(1, part[1:, None])[:, 0]
        total += float(loss.detach().double().sum())
        twin.zero_grad()
        loss.mean().backward()
        gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in twin.named_parameters()}
        for name in names:
            squares[name] = (squares[name] * (segments - 1) + gradients[name] ** 2) / segments
        usual = torch.cat([squares[name].sqrt().flatten() for name in names]).mean()
        with torch.no_grad():
            for name, p in twin.named_parameters():
                size = squares[name].sqrt()
                back = (config.decay * size / usual).clamp(max=1.0) * (first[name] - p)
                p += back - config.learning_rate * gradients[name] / (size + usual + EPSILON)
    return total


def make_twin(model):
    twin = LiquidTimeConstantNetwork.from_settings(model.settings)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


@pytest.mark.parametrize("more", KINDS, ids=IDS)
def test_dynamic_evaluation_equals_a_slow_loop(more):
    model, tokens, config = make_model(**more), text(50), DynamicConfig(learning_rate=0.03, decay=0.3, segment=6)
    scores = score_adaptively(model, tokens, config)
    assert scores.own == pytest.approx(dynamic_by_hand(model, tokens, config), rel=2e-5)
    assert scores.mixed == scores.own
    still = score_adaptively(model, tokens, DynamicConfig(learning_rate=1e-9, segment=6)).own
    assert abs(scores.own - still) > 3e-4 * still, "the updates are felt"


def test_the_model_stays_as_it_was():
    model, tokens = make_model(), text(60)
    model.layers[1].train(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    score_adaptively(model, tokens, DynamicConfig(learning_rate=0.1), CacheConfig())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [module.training for module in model.modules()] == modes


def test_frozen_weights_learn_and_a_caller_in_inference_mode_changes_nothing():
    model, tokens = make_model(), text(40)
    expected = score_adaptively(model, tokens, DynamicConfig(segment=4), CacheConfig())
    model.requires_grad_(False)
    with torch.inference_mode():
        assert score_adaptively(model, tokens, DynamicConfig(segment=4), CacheConfig()) == expected
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("head", ["full", "adaptive"])
@pytest.mark.parametrize("changed", [7, 16, 25])
def test_a_score_depends_on_earlier_tokens_only(changed, head, monkeypatch):
    model = make_model(head=head, adaptive_cutoffs=(10, 20) if head == "adaptive" else ())
    tokens = text(40)
    other = tokens.copy()
    other[changed:] = (other[changed:] + 11) % 30
    original = ContinuousCache.mix

    def each(stream):
        own, mixed = [], []

        def mix(self, hidden, targets, losses):
            own.extend(losses.tolist())
            mixed.extend(original(self, hidden, targets, losses).tolist())
            return losses

        monkeypatch.setattr(ContinuousCache, "mix", mix)
        score_adaptively(model, stream, DynamicConfig(learning_rate=0.01, segment=5), CacheConfig(size=9))
        return own, mixed

    for mine, theirs in zip(each(tokens), each(other), strict=True):
        assert len(mine) == 39
        assert mine[: changed - 1] == theirs[: changed - 1]  # number i is the loss of token i + 1
        assert all(abs(a - b) > 1e-3 for a, b in zip(mine[changed - 1 :], theirs[changed - 1 :], strict=True))


@pytest.mark.slow
def test_both_help_on_a_text_that_repeats_itself():
    model, tokens = make_model(), np.tile(text(25), 12)
    plain = score_tokens(model, tokens)[0]
    learned = score_adaptively(model, tokens, DynamicConfig(learning_rate=0.01, segment=12))
    remembered = score_adaptively(model, tokens, cache=CacheConfig(weight=0.5, theta=50.0))
    assert learned.own < 0.9 * plain
    assert remembered.mixed < 0.5 * plain
    assert (
        score_adaptively(model, tokens, DynamicConfig(learning_rate=0.01, segment=12), CacheConfig()).mixed
        < learned.own
    )


def test_the_cache_is_bounded():
    cache = ContinuousCache(CacheConfig(size=10))
    for _ in range(5):
        cache.mix(torch.randn(7, 4), torch.arange(7), torch.ones(7))
    assert cache._places.shape == (10, 4)
    assert cache._places.untyped_storage().nbytes() == 10 * 4 * 4
    assert len(cache._tokens) == 10


def test_a_cache_of_no_weight_and_a_strong_preference_change_nothing_and_break_nothing():
    model, tokens = make_model(), text(60)
    plain = score_tokens(model, tokens)[0]
    assert score_adaptively(model, tokens, cache=CacheConfig(weight=0.0)).mixed == pytest.approx(plain, rel=1e-6)
    assert math.isfinite(score_adaptively(model, tokens, cache=CacheConfig(theta=1000.0)).mixed)


def test_progress_reaches_the_end():
    reported = []
    score_adaptively(make_model(), text(50), DynamicConfig(segment=8), progress=lambda *now: reported.append(now))
    assert reported[-1] == (49, 49)
    assert [done for done, _ in reported] == [8, 16, 24, 32, 40, 48, 49]


def test_invalid_arguments_are_rejected():
    with pytest.raises(DataError, match="at least 2 tokens"):
        score_adaptively(make_model(), text(1))
    with pytest.raises(UsageError, match="weight"):
        CacheConfig.parse({"weight": 1.0})


def test_weights_that_are_no_numbers_any_more_are_named(monkeypatch):
    original = Learner.learn

    def learn(self, loss):
        original(self, loss)
        if self._segments == 3:
            self._weights[0].data.fill_(math.nan)

    monkeypatch.setattr(Learner, "learn", learn)
    with pytest.raises(LTCError, match=r"24.*0\.5"):
        score_adaptively(make_model(), text(60), DynamicConfig(learning_rate=0.5, segment=8))
