import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltc_textgen.config import ModelConfig
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer, read_tokenizer
from ltc_textgen.errors import DataError, LTCError, UsageError
from ltc_textgen.evaluation import count_words, evaluate, score_tokens, tokenize
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.model.state import LiquidState

CHARS = character_tokenizer("ab\n ")  # ids: \n 0, space 1, a 2, b 3, EOS 4, unknown 5
A, B, EOS_TOKEN, UNKNOWN = 2, 3, CHARS.eos_token_id, CHARS.unk_token_id


class Bigram(LiquidTimeConstantNetwork):
    """Predicts from the last token alone, by a table of probabilities p(next | last)."""

    def __init__(self, table):
        super().__init__(len(table), len(table))
        with torch.no_grad():
            self.lm_head.projection.weight.copy_(table.log().T)
            self.lm_head.projection.bias.zero_()

    def advance(self, input_ids, state=None, elapsed=None, mask=None):
        state = self.initial_state(input_ids.shape[0]) if state is None else state
        return F.one_hot(input_ids, self.settings.hidden_size).float(), state


class Forgetful(LiquidTimeConstantNetwork):
    """After n tokens since rest, the next token is an `a` with probability p_n, else anything else."""

    def __init__(self, chances):
        super().__init__(CHARS.vocab_size, len(chances))
        others = (1 - chances) / (CHARS.vocab_size - 1)
        with torch.no_grad():
            self.lm_head.projection.weight.copy_(others.log().expand(CHARS.vocab_size, -1))
            self.lm_head.projection.weight[A] = chances.log()
            self.lm_head.projection.bias.zero_()

    def advance(self, input_ids, state=None, elapsed=None, mask=None):
        size = self.settings.hidden_size
        before = self.initial_state(input_ids.shape[0]) if state is None else state
        count = before.neurons[0][:, :1] + torch.arange(1, input_ids.shape[1] + 1)
        hidden = F.one_hot((count.long() - 1).clamp_max(size - 1), size).float()
        return hidden, LiquidState((count[:, -1:].expand(-1, size),), ())


def table():
    """Rows: last token; columns: next token. Newline, space, a, b, EOS, unknown."""
    rows = torch.full((6, 6), 1 / 6)
    rows[EOS_TOKEN] = torch.tensor([0.05, 0.05, 0.5, 0.25, 0.1, 0.05])
    rows[A] = torch.tensor([0.125, 0.125, 0.125, 0.5, 0.1, 0.025])
    rows[B] = torch.tensor([0.2, 0.25, 0.25, 0.1, 0.1, 0.1])
    return rows


def make_model(seed=0, **more):
    torch.manual_seed(seed)
    settings = {"hidden_size": 16, "coupling": "diagonal", "block": "liquid", "num_layers": 2, "dropout": 0.5} | more
    model = LiquidTimeConstantNetwork.from_settings(ModelConfig(input_size=257, **settings))
    with torch.no_grad():
        for name, weight in model.lm_head.named_parameters():
            if name.endswith("weight"):
                weight.mul_(3)
    return model


def by_hand(model, tokens, window=None):
    """One token at a time, a softmax in float64, the state put to rest where a window begins."""
    model.eval()
    total, state = 0.0, None
    for i in range(len(tokens) - 1):
        if window and i % window == 0:
            state = None
        with torch.no_grad():
            hidden, state = model.advance(torch.tensor([[tokens[i]]]), state)
            chances = model.lm_head.logits(hidden[0, -1:]).double().softmax(1)[0]
        total -= math.log(float(chances[tokens[i + 1]]))
    return total


def test_a_case_computed_by_hand():
    # stream: | a b space b | b a \n ; p = .5 .5 .25 1/6 .1(b->|) .25 .25 .125
    scores = evaluate(Bigram(table()), CHARS, ["ab b", "", "ba\n"])
    nats = -sum(map(math.log, [0.5, 0.5, 0.25, 1 / 6, 0.1, 0.25, 0.25, 0.125]))
    assert scores.tokens == 8
    assert scores.words == 4  # ab, b, ba, and one line end
    assert scores.bytes == 7
    assert scores.nll_per_token == pytest.approx(nats / 8, rel=1e-6)
    assert scores.perplexity == pytest.approx(math.exp(nats / 8), rel=1e-6)
    assert scores.word_perplexity == pytest.approx(math.exp(nats / 4), rel=1e-6)
    assert scores.bits_per_byte == pytest.approx(nats / 7 / math.log(2), rel=1e-6)
    assert (scores.unknown_tokens, scores.unknown_rate, scores.window) == (0, 0.0, None)


def test_long_documents_are_tokenised_as_in_training(monkeypatch):
    documents = ["ab " * 40, "b\n" * 7]
    expected = [EOS_TOKEN, *CHARS.encode(documents[0]), EOS_TOKEN, *CHARS.encode(documents[1])]
    for size in (1 << 16, 9):
        monkeypatch.setattr("ltc_textgen.data.tokenize.PART", size)
        stream, words, count = tokenize(CHARS, documents)
        assert stream.tolist() == expected
        assert (words, count) == (40 + 14, 120 + 14)


def test_windows_reset_and_carried_state_does_not():
    chances = torch.tensor([0.1, 0.2, 0.4, 0.8])  # of an `a` after 1, 2, 3, 4 or more tokens
    model, text = Forgetful(chances), ["a" * 10]
    first, second, third, later = (-math.log(p) for p in chances.tolist())
    carried = evaluate(model, CHARS, text)
    assert carried.nll_per_token * 10 == pytest.approx(first + second + third + 7 * later, rel=1e-6)
    three = evaluate(model, CHARS, text, window=3)
    assert three.nll_per_token * 10 == pytest.approx(3 * (first + second + third) + first, rel=1e-6)
    assert three.window == 3
    assert evaluate(model, CHARS, text, window=1).nll_per_token == pytest.approx(first, rel=1e-6)
    assert evaluate(model, CHARS, text, window=10).nll_per_token == pytest.approx(carried.nll_per_token, rel=1e-9)
    assert evaluate(model, CHARS, text, window=999).nll_per_token == pytest.approx(carried.nll_per_token, rel=1e-9)


def test_rows_start_from_the_initial_state_and_the_last_one_continues():
    chances = torch.tensor([0.1, 0.2, 0.4, 0.8])
    first, second, third, later = (-math.log(p) for p in chances.tolist())
    tokens = np.full(12, A)  # 11 scored: rows of 3, 3, 3 and 2 more for the last
    nll, count = score_tokens(Forgetful(chances), tokens, rows=3)
    assert count == 11
    assert nll == pytest.approx(3 * (first + second + third) + 2 * later, rel=1e-6)
    nll, count = score_tokens(Forgetful(chances), tokens, rows=500)
    assert (nll, count) == (pytest.approx(11 * first, rel=1e-6), 11)


def test_rows_equal_a_slow_loop_over_each():
    model = make_model(coupling="full", block="plain")
    tokens = np.random.default_rng(1).integers(0, 257, 39)  # 38 scored: rows of 9, 9, 9 and 9 + 2
    nll, _ = score_tokens(model, tokens, rows=4, chunk=5)
    parts = [tokens[0:10], tokens[9:19], tokens[18:28], tokens[27:39]]
    assert nll == pytest.approx(sum(by_hand(model, part) for part in parts), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 7, 16, 1000])
@pytest.mark.parametrize(
    "more", [{}, {"head": "adaptive", "adaptive_cutoffs": (20, 100)}, {"coupling": "full", "block": "plain"}]
)
def test_equals_a_slow_loop(window, more):
    model, tokenizer = make_model(**more), byte_tokenizer()
    text = ["The cat sat on the mat. ", "It wäs the mat of a cat\nthat sat.\n"]
    stream = [tok for t in text for tok in (tokenizer.eos_token_id, *tokenizer.encode(t))]
    scores = evaluate(model, tokenizer, text, window=window)
    assert scores.tokens == len(stream) - 1
    assert scores.bytes == len(stream) - 2
    assert scores.nll_per_token * scores.tokens == pytest.approx(by_hand(model, stream, window), rel=1e-5)


def test_number_types_and_memory_maps_change_nothing(tmp_path):
    model, tokens = make_model(), np.random.default_rng(0).integers(0, 257, 50)
    expected = score_tokens(model, tokens)
    for kind in (np.uint16, np.uint32, np.int32):
        tokens.astype(kind).tofile(tmp_path / "tokens.bin")
        assert score_tokens(model, np.memmap(tmp_path / "tokens.bin", kind, "r")) == expected


@pytest.mark.slow
def test_chunks_and_batches_change_nothing(monkeypatch):
    model = make_model()
    tokens = np.random.default_rng(0).integers(0, 257, 60)
    whole = {w: score_tokens(model, tokens, window=w, chunk=10_000) for w in (None, 13)}
    assert whole[None][0] != pytest.approx(whole[13][0], rel=1e-5)
    monkeypatch.setattr("ltc_textgen.evaluation.scoring.BATCH_TOKENS", 60)
    monkeypatch.setattr("ltc_textgen.evaluation.scoring.HEAD_LOGITS", 257 * 3)
    for window, expected in whole.items():
        for chunk in (1, 5, 50):
            nll, count = score_tokens(model, tokens, window=window, chunk=chunk)
            assert (nll, count) == (pytest.approx(expected[0], rel=1e-6), 59)


def test_a_large_vocabulary_is_scored_in_slices(monkeypatch):
    model, rows = make_model(), []
    monkeypatch.setattr("ltc_textgen.evaluation.scoring.HEAD_LOGITS", 257 * 10)
    loss = model.lm_head.loss
    monkeypatch.setattr(
        model.lm_head, "loss", lambda hidden, targets: rows.append(len(hidden)) or loss(hidden, targets)
    )
    score_tokens(model, np.arange(36))
    assert rows == [10, 10, 10, 5]


def record(*lists):
    return lambda *values: [into.append(value) for into, value in zip(lists, values, strict=True)]


def test_progress_counts_every_token():
    for options in ({}, {"window": 7}, {"rows": 4}):
        done, all_ = [], []
        score_tokens(make_model(), np.arange(100), chunk=9, progress=record(done, all_), **options)
        assert done[-1] == 99
        assert done == sorted(set(done))
        assert set(all_) == {99}


def test_scoring_leaves_the_model_as_it_was():
    model = make_model()
    model.train()
    in_training, _ = score_tokens(model, np.arange(50))
    assert all(module.training for module in model.modules())
    model.eval()
    assert score_tokens(model, np.arange(50))[0] == in_training
    assert all(p.grad is None for p in model.parameters())


def test_words_are_those_of_wikitext():
    assert count_words(" = Lobster = \n \n A <unk> lobster , 6 @.@ 5 cm . \n") == 3 + 9 + 3
    assert count_words("") == 0


def test_unknown_tokens_are_counted(tmp_path):
    scores = evaluate(Bigram(table()), CHARS, ["aéb"])
    assert (scores.unknown_tokens, scores.unknown_rate, scores.bytes) == (1, pytest.approx(1 / 3), 4)
    assert not scores.lossless
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[UNK]", "[SEP]", "the", "cat"]), encoding="utf-8")
    bert = read_tokenizer(path, "bert")
    scores = evaluate(Bigram(torch.full((4, 4), 0.25)), bert, ["The cat, the dog"])
    assert (scores.tokens, scores.unknown_tokens) == (5, 2)
    assert not scores.lossless


def test_scores_as_json():
    scores = evaluate(Bigram(table()), CHARS, ["ab"], window=5)
    values = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert values["perplexity"] == scores.perplexity
    assert set(values) == {
        *("nll_per_token", "perplexity", "word_perplexity", "bits_per_byte", "tokens", "words", "bytes"),
        *("unknown_tokens", "unknown_rate", "lossless", "window"),
    }


def test_a_perplexity_beyond_float64_is_infinite_and_null_in_json():
    rows = torch.full((6, 6), 1e-36)
    rows[:, B] = 1.0
    scores = evaluate(Bigram(rows), CHARS, ["a" * 20])
    assert scores.word_perplexity == math.inf
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["word_perplexity"] is None


@pytest.mark.parametrize("documents", [[], [""], ["  "], ["", ""]])
def test_blank_text_is_rejected(documents):
    with pytest.raises(DataError, match="blank"):
        evaluate(Bigram(table()), CHARS, documents)


def test_bad_arguments_are_named():
    model = make_model()
    with pytest.raises(UsageError, match="window"):
        score_tokens(model, np.arange(5), window=0)
    with pytest.raises(UsageError, match="rows"):
        score_tokens(model, np.arange(5), rows=-1)
    with pytest.raises(UsageError, match="chunk"):
        score_tokens(model, np.arange(5), chunk=0)
    with pytest.raises(DataError, match="2 tokens.*1"):
        score_tokens(model, np.arange(1))
    with pytest.raises(UsageError, match="6 tokens, the model 257"):
        evaluate(model, CHARS, ["ab"])


def test_broken_weights_are_named():
    model = make_model()
    with torch.no_grad():
        model.layers[1].norm.weight.fill_(math.nan)
    assert math.isnan(score_tokens(model, np.arange(9))[0])
    with pytest.raises(LTCError, match=r"nan"):
        evaluate(model, byte_tokenizer(), ["abc"])
