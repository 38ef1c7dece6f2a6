"""The n-gram memory against a naive count, and its mixture against the formulas."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.kernels.library import LIBRARY
from ltc_textgen.memory import Mixture, NgramMemory
from ltc_textgen.memory.mixture import RATE

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no compiled kernels here")

TEXTS = st.lists(st.integers(0, 4), min_size=0, max_size=60)


class NaiveMemory:
    """Kneser-Ney by dictionaries: continuation counts from sets of predecessors, as the papers define them."""

    def __init__(self, vocab_size: int, order: int, eos: int | None = None) -> None:
        self.V, self.order, self.eos = vocab_size, order, eos
        self.counts: list[dict[tuple[int, ...], dict[int, int]]] = [defaultdict(dict) for _ in range(order + 1)]
        self.history: list[int] = []

    def context(self) -> list[int]:
        for i in range(len(self.history) - 1, -1, -1):
            if self.history[i] == self.eos:
                return self.history[i:]
        return self.history

    def learn(self, tokens: list[int]) -> None:
        for token in tokens:
            longest = self.context()[max(0, len(self.context()) - self.order) :] if self.order else []
            for cut in range(len(longest) + 1):
                context = tuple(longest[cut:])
                known = self.counts[len(context)][context]
                known[token] = known.get(token, 0) + 1
                if known[token] > 1:
                    break
            self.history.append(token)

    def discount(self, order: int, count: int) -> float:
        n = [0.0] * 5
        for followers in self.counts[order].values():
            for c in followers.values():
                if c <= 4:
                    n[c] += 1
        y = n[1] / (n[1] + 2 * n[2]) if n[1] + n[2] else 0.5
        values = (
            min(max(1 - 2 * y * n[2] / n[1] if n[1] else 0.5, 0.05), 0.98),
            min(max(2 - 3 * y * n[3] / n[2] if n[2] else 1.0, 0.05), 1.95),
            min(max(3 - 4 * y * n[4] / n[3] if n[3] else 1.5, 0.05), 2.9),
        )
        return values[min(count, 3) - 1]

    def probabilities(self) -> np.ndarray:
        context = self.context()[max(0, len(self.context()) - self.order) :] if self.order else []
        p = np.full(self.V, 1 / self.V)
        for cut in range(len(context), -1, -1):
            followers = self.counts[len(context) - cut].get(tuple(context[cut:]), {})
            if not followers:
                continue
            total, left, here = sum(followers.values()), 0.0, np.zeros(self.V)
            for token, count in followers.items():
                taken = self.discount(len(context) - cut, count)
                here[token] = (count - taken) / total
                left += taken / total
            p = here + left * p
        return p


@given(text=TEXTS, order=st.integers(0, 4), eos=st.sampled_from([None, 0]))
@settings(max_examples=150, deadline=None)
def test_the_distribution_is_that_of_a_naive_count(text: list[int], order: int, eos: int | None) -> None:
    memory, naive = NgramMemory(5, order, eos), NaiveMemory(5, order, eos)
    memory.learn(np.array(text, dtype=np.int64))
    naive.learn(text)
    np.testing.assert_allclose(memory.probabilities(), naive.probabilities(), rtol=1e-10, atol=1e-13)
    assert memory.entries == sum(len(f) for counts in naive.counts for f in counts.values())


@given(text=TEXTS)
@settings(max_examples=50, deadline=None)
def test_counts_of_shorter_contexts_are_continuation_counts(text: list[int]) -> None:
    naive = NaiveMemory(5, 2)
    naive.learn(text)
    trigrams = {tuple(text[i : i + 3]) for i in range(len(text) - 2)}
    for (context,), followers in naive.counts[1].items():
        for token, count in followers.items():
            begins = text[:2] == [context, token]  # the second token of the text has one token of context alone
            assert count == len({g for g in trigrams if g[1:] == (context, token)}) + begins


def test_learning_on_is_learning_at_once() -> None:
    text = np.random.default_rng(0).integers(0, 7, 3000)
    whole, parts = NgramMemory(7, 5), NgramMemory(7, 5)
    whole.learn(text)
    mixture = Mixture.start(parts)
    for part in np.array_split(text, 9):
        mixture.score(part, adapt_counts=True)
    assert (whole.probabilities() == parts.probabilities()).all()
    assert (whole.entries, whole.contexts) == (parts.entries, parts.contexts)


@pytest.mark.parametrize(("vocab_size", "order"), [(1, 8), (2, 15), (30_522, 5)])
def test_probabilities_sum_to_one(vocab_size: int, order: int) -> None:
    memory = NgramMemory(vocab_size, order)
    text = np.minimum(np.random.default_rng(1).zipf(1.3, 5000) - 1, vocab_size - 1)
    for part in np.array_split(text, 10):
        p = memory.probabilities()
        assert abs(p.sum() - 1) < 1e-9
        assert p.min() > 0
        memory.learn(part)


def test_a_text_of_one_symbol_is_soon_certain() -> None:
    memory = NgramMemory(50, 8)
    memory.learn(np.full(1000, 7))
    assert memory.probabilities()[7] > 0.99


def test_a_documents_end_is_the_oldest_context() -> None:
    rng = np.random.default_rng(2)
    one, other = NgramMemory(6, 4, eos_token_id=5), NgramMemory(6, 4, eos_token_id=5)
    text = rng.integers(0, 5, 500)
    for memory, before in ((one, [0, 1, 2]), (other, [3, 4, 4])):
        memory.learn(text)
        memory.read([*before, 5, 2])
    assert (one.probabilities() == other.probabilities()).all()


def test_a_full_memory_still_gives_a_distribution() -> None:
    memory = NgramMemory(20, 6, max_entries=100)
    memory.learn(np.random.default_rng(3).integers(0, 20, 5000))
    assert memory.entries <= 100 + 20
    assert memory.probabilities().min() > 0
    assert abs(memory.probabilities().sum() - 1) < 1e-9


def test_no_score_depends_on_the_token_that_is_scored() -> None:
    rng = np.random.default_rng(4)
    text, network = rng.integers(0, 6, 400), np.log(rng.dirichlet(np.ones(6), 2)).astype(np.float32)
    chances = []
    for token in range(6):
        mixture = Mixture.start(NgramMemory(6, 3))
        mixture.memory.learn(text)
        scored = mixture.score([token, 0], network, adapt_counts=True, adapt_weights=True)
        chances.append(np.exp(-scored.mixed[0]))
    assert sum(chances) == pytest.approx(1, abs=1e-5)


def trained(vocab_size: int, order: int, seed: int, learned: int = 600) -> Mixture:
    """A mixture whose memory knows a random text, with random weights."""
    rng = np.random.default_rng(seed)
    mixture = Mixture.start(NgramMemory(vocab_size, order))
    mixture.memory.learn(rng.integers(0, vocab_size, learned))
    mixture.weights[:] += rng.normal(0, 0.05, mixture.weights.shape).astype(np.float32)
    return mixture


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("recent", [False, True])
def test_the_mixture_is_the_normalised_product_of_powers(recent: bool, share: float) -> None:
    rng = np.random.default_rng(5)
    mixture = trained(9, 4, 5).with_share(share)
    network = np.log(rng.dirichlet(np.ones(9))).astype(np.float32)
    if recent:
        mixture = mixture.adapting()
        assert mixture.recent is not None
        mixture.recent.learn(rng.integers(0, 9, 200))
        mixture.recent.reset()
    mixture.memory.reset()
    read = rng.integers(0, 9, 6)
    mixture.memory.read(read)
    rows = rows_used(mixture, network, read)
    assert len(rows) == 3 + recent
    a, b, c = mixture.weights[rows].sum(0)
    mixed = (1 + share * (a - 1)) * network + share * b * np.log(mixture.memory.probabilities())
    if recent:
        mixture.recent.read(read)
        mixed += share * c * np.log(mixture.recent.probabilities())
    expected = mixed - np.log(np.exp(mixed).sum())
    got = mixture.apply(network[None], mixture.contexts_of(read.tolist()))
    np.testing.assert_allclose(got[0], expected, atol=5e-6)
    assert np.exp(got.astype(np.float64)).sum() == pytest.approx(1, abs=1e-6)
    assert mixture.score([3], network[None]).mixed[0] == pytest.approx(-expected[3], abs=5e-6)


def rows_used(mixture: Mixture, network: np.ndarray, read: np.ndarray) -> np.ndarray:
    """The rows of the weights that learn from a token after `read`, found on a copy."""
    memory = NgramMemory.from_tables(*mixture.memory.tables())
    memory.read(read)
    copy = replace(mixture, memory=memory, weights=mixture.weights.copy(), steps=np.zeros_like(mixture.steps))
    copy.score([0], network[None], adapt_weights=True)
    return np.flatnonzero(copy.steps)


def test_weights_follow_the_gradient() -> None:
    rng = np.random.default_rng(6)
    mixture = trained(9, 4, 6)
    mixture.memory.reset()
    network = np.log(rng.dirichlet(np.ones(9), 1)).astype(np.float32)
    log_memory, before = np.log(mixture.memory.probabilities()), mixture.weights.copy()

    def log_p(a: float, b: float) -> float:
        mixed = a * network[0] + b * log_memory
        return float(mixed[2] - np.log(np.exp(mixed).sum()))

    rows, step = rows_used(mixture, network[0], np.empty(0, np.int64)), 1e-4
    a, b, _ = before[rows].sum(0).astype(np.float64)
    gradient = [
        (log_p(a + step, b) - log_p(a - step, b)) / (2 * step),
        (log_p(a, b + step) - log_p(a, b - step)) / (2 * step),
    ]
    mixture.score([2], network, adapt_weights=True)
    moved = mixture.weights - before
    assert (np.flatnonzero(mixture.steps) == rows).all()
    assert (np.delete(moved, rows, 0) == 0).all()
    for row in rows:
        np.testing.assert_allclose(moved[row, :2], RATE * np.array(gradient), rtol=5e-3)


@pytest.mark.parametrize("order", [0, 3, 15])
def test_a_batch_mixes_as_a_text_alone(order: int) -> None:
    rng = np.random.default_rng(7)
    mixture = trained(9, order, 7)
    rows = [rng.integers(0, 9, n).tolist() for n in (0, 1, 5, 40)]
    logits = rng.normal(0, 3, (len(rows), 9)).astype(np.float32)
    contexts = np.concatenate([mixture.contexts_of(row) for row in rows])
    mixed = mixture.apply(logits, contexts)
    for i, row in enumerate(rows):
        mixture.memory.reset()
        mixture.memory.read(row)
        log_probs = logits[i : i + 1] - np.log(np.exp(logits[i : i + 1].astype(np.float64)).sum())
        alone = mixture.score([0], log_probs).mixed[0]
        assert mixed[i, 0] == pytest.approx(-alone, abs=1e-5)
        assert (mixture.apply(logits[i : i + 1], contexts[i : i + 1]) == mixed[i]).all()
        assert (mixture.advance(contexts[i : i + 1], np.array([[3]])) == mixture.contexts_of([*row, 3])).all()


def test_a_share_of_zero_is_the_network_alone_to_the_bit() -> None:
    mixture, logits = trained(9, 4, 8).with_share(0), np.random.default_rng(8).normal(0, 3, (2, 9)).astype(np.float32)
    assert (mixture.apply(logits, mixture.contexts_of([1, 2], 2)) == logits).all()


def test_broken_logits_stay_broken() -> None:
    mixture, logits = trained(9, 4, 9), np.zeros((2, 9), np.float32)
    logits[1, 4] = np.nan
    mixed = mixture.apply(logits, mixture.contexts_of([1], 2))
    assert np.isfinite(mixed[0]).all()
    assert np.isnan(mixed[1, 4])


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_rejected(share: float) -> None:
    with pytest.raises(UsageError):
        trained(3, 1, 0).with_share(share)


def test_the_recent_memory_helps_where_the_text_repeats_itself() -> None:
    rng = np.random.default_rng(10)
    mixture = Mixture.start(NgramMemory(12, 4))
    mixture.memory.learn(rng.integers(0, 12, 3000))
    network = np.full((600, 12), -np.log(12), np.float32)
    text = np.tile(rng.integers(0, 12, 60), 10)
    losses = [
        m.score(text, network, adapt_weights=True, adapt_counts=a).mixed.mean()
        for m, a in ((mixture, False), (mixture.adapting(), True))
    ]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize("order", [2, 8])
def test_pruning_keeps_what_is_frequent(order: int) -> None:
    rng, memory = np.random.default_rng(11), NgramMemory(20, order)
    memory.learn(np.concatenate([np.tile(np.arange(20), 50), rng.integers(0, 20, 5000)]))
    before = memory.file_size
    memory.prune(before // 4)
    assert memory.file_size <= before // 4
    assert abs(memory.probabilities().sum() - 1) < 1e-9
    memory.reset()
    memory.read(np.arange(5, 5 + max(order, 4)))
    assert memory.probabilities().argmax() == 5 + max(order, 4)
    memory.prune(0)
    assert memory.contexts == 1
    assert memory.entries == 20


def test_learning_continues_after_pruning() -> None:
    memory, text = NgramMemory(7, 5), np.random.default_rng(12).integers(0, 7, 3000)
    memory.learn(text)
    memory.prune(0)
    memory.learn(np.tile([1, 2, 3, 4], 200))
    assert memory.probabilities()[1] > 0.9


def test_without_adapting_nothing_changes() -> None:
    mixture = Mixture.start(NgramMemory(9, 4))
    text, network = np.arange(9), np.log(np.full((9, 9), 1 / 9, np.float32))
    mixture.memory.learn(text)
    entries, weights = mixture.memory.entries, mixture.weights.copy()
    mixture.score(text, network)
    assert mixture.memory.entries == entries
    assert (mixture.weights == weights).all()


def test_a_saved_memory_is_the_same(tmp_path: Path) -> None:
    memory, text = NgramMemory(30, 6, eos_token_id=29), np.random.default_rng(7).integers(0, 30, 4000)
    memory.learn(text)
    mixture = replace(Mixture.start(memory))
    mixture.weights[:] = np.random.default_rng(8).normal(0, 1, mixture.weights.shape)
    mixture.save(tmp_path / "memory.safetensors", {"tokenizer": "abc"})
    found, header = Mixture.load(tmp_path / "memory.safetensors")
    loaded = found.memory
    memory.reset()
    assert header["tokenizer"] == "abc"
    assert (found.weights == mixture.weights).all()
    for token in text[:50]:
        assert (loaded.probabilities() == memory.probabilities()).all()
        loaded.learn([token])
        memory.learn([token])


@pytest.mark.parametrize(
    "damage", ["token", "link", "head", "shared", "twice", "zero", "dtype", "shape", "lost", "order", "weights", "nan"]
)
def test_a_damaged_memory_is_rejected(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    memory = NgramMemory(8, 3)
    memory.learn(np.random.default_rng(8).integers(0, 8, 300))
    Mixture.start(memory).save(path)
    tensors, header = load_file(path), Mixture.load(path)[1]
    entries, keys, heads = tensors["entries"], tensors["keys"], tensors["heads"]
    match damage:
        case "token":
            entries[5, 0] = 8
        case "link":
            entries[5, 2] = 6  # entry 6 of a list leads to itself
        case "head":
            heads[3] = len(entries) + 1
        case "shared":
            heads[:] = heads.max()
        case "twice":
            keys[1] = keys[0]
        case "zero":
            entries[5, 1] = 0
        case "dtype":
            tensors["heads"] = heads.astype(np.int64)
        case "shape":
            tensors["entries"] = entries.reshape(-1)
        case "lost":
            del tensors["tallies"]
        case "order":
            header["order"] = "99"
        case "weights":
            tensors["weights"] = tensors["weights"][1:].copy()
        case "nan":
            tensors["weights"][7, 1] = np.nan
    save_file(tensors, path, header)
    with pytest.raises(ArtifactError, match=str(path)):
        Mixture.load(path)


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_a_file_that_is_none_is_rejected(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError):
        Mixture.load(path)


@pytest.mark.parametrize("tokens", [[5], [-1], [0.5], [[1, 2]], [2**40]])
def test_ids_outside_of_the_vocabulary_are_rejected(tokens: list[object]) -> None:
    with pytest.raises(UsageError):
        NgramMemory(5, 2).learn(tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"order": 16}, {"order": -1}, {"vocab_size": 0}, {"max_entries": -1}])
def test_impossible_sizes_are_rejected(values: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        NgramMemory(**{"vocab_size": 5, **values})


def test_a_network_that_is_not_finite_is_rejected() -> None:
    with pytest.raises(UsageError):
        Mixture.start(NgramMemory(3, 1)).score([1], np.array([[0.0, np.nan, 0.0]]))
    with pytest.raises(UsageError):
        Mixture.start(NgramMemory(3, 1)).score([1], np.zeros((1, 4)))
