"""The language benchmarks: every model learns, scores are exact, budgets hold, and output parses."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ablation
import language
import state_tracking
from lib import models, settings, training
from lib.word_tokenizer import word_tokenizer
from ltc_textgen.evaluation import score_tokens

CYCLE = np.tile(np.arange(8), 60)
TEXT = "the cat saw the dog . the dog saw the cat .\n" * 40 + "a bird ran\n"


def tiny(name: str) -> models.LanguageModel:
    torch.manual_seed(0)
    block = {
        "block": "liquid",
        "coupling": "diagonal",
        "hidden_size": 16,
        "num_layers": 1,
        "steps": 1,
        "step_size": 1.0,
    }
    made = {
        "liquid": lambda: models.Liquid.of(8, **block),
        "mingru": lambda: models.exchange_cells(models.Liquid.of(8, **block), models.MinGruCell),
        "gru block": lambda: models.exchange_cells(models.Liquid.of(8, **block), models.GruCell),
        "lstm": lambda: models.Awd("lstm", 8, 16, 24, 2, models.Drop(0.02, 0.1, 0.1, 0.1, 0.1)),
        "gru": lambda: models.Awd("gru", 8, 16, 16, 1, models.Drop(weight=0.1), tied=False),
        "gpt2": lambda: models.Gpt2(8, 16, 16, 1, 2, dropout=0.0),
    }
    return made[name]()


EVERY = ("liquid", "mingru", "gru block", "lstm", "gru", "gpt2")
RECURRENT = EVERY[:-1]


@pytest.mark.parametrize("name", EVERY)
def test_every_model_learns_in_the_steps_it_is_given(name):
    model = tiny(name)
    plan = training.Plan(2e-2, batch=8, length=12, weight_decay=0.0, validations=2)
    before = training.score(model, CYCLE)
    done = training.fit(model, CYCLE, CYCLE, plan, training.Budget(steps=60))
    assert (done.steps, done.tokens) == (60, 60 * 8 * 12)
    assert before > 1.5
    assert done.best_loss < 0.5, done
    assert len(done.curve) == 2
    assert done.best_loss == min(point[2] for point in done.curve)


@pytest.mark.parametrize("name", RECURRENT)
def test_carried_state_is_reading_the_text_at_once(name):
    model, tokens = tiny(name), np.random.default_rng(0).integers(0, 8, 90)
    ids = torch.from_numpy(tokens)[None]
    model.eval()
    with torch.no_grad():
        hidden, _ = model(ids[:, :-1])
        expected = F.cross_entropy(model.logits(hidden)[0], ids[0, 1:]).item()
    assert training.score(model, tokens) == pytest.approx(expected, abs=1e-5)
    assert training.score(model, tokens, chunk=7) == pytest.approx(expected, abs=1e-5)


def test_scores_are_those_of_the_package():
    model, tokens = tiny("liquid"), np.random.default_rng(0).integers(0, 8, 203)
    for window in (None, 16):
        nats, count = score_tokens(model.network, tokens, window=window)
        assert training.score(model, tokens, window) == pytest.approx(nats / count, abs=1e-6)


def test_a_transformer_sees_three_quarters_of_its_context_at_least():
    model, tokens = tiny("gpt2"), np.random.default_rng(0).integers(0, 8, 53)
    model.eval()
    nats = 0.0
    with torch.no_grad():
        for t in range(1, len(tokens)):
            # Windows of 16 begin at multiples of 4, and one more ends with the text; the first to reach t scores it.
            starts = [*range(0, len(tokens) - 16, 4), len(tokens) - 17]
            start = next(s for s in starts if s + 16 >= t)
            hidden, _ = model(torch.from_numpy(tokens[start:t])[None])
            nats += F.cross_entropy(model.logits(hidden[0, -1:]), torch.tensor([tokens[t]])).item()
    assert training.score(model, tokens) == pytest.approx(nats / (len(tokens) - 1), abs=1e-5)


def test_windows_reset_the_state():
    model = tiny("lstm")
    tokens = np.random.default_rng(0).integers(0, 8, 33)
    apart = [training.score(model, tokens[k : k + 17]) for k in (0, 16)]
    assert training.score(model, tokens, window=16) == pytest.approx(sum(apart) / 2, abs=1e-6)
    assert training.score(model, tokens, window=16) != pytest.approx(training.score(model, tokens), abs=1e-6)


def test_random_crops_estimate_the_loss_of_windows():
    model, tokens = tiny("lstm"), np.repeat([0, 3], 300)
    with torch.no_grad():
        model.head.bias[0] = 4.0  # zeros are expected, so where a crop lies decides
    assert training.random_crops(model, tokens, 8, rounds=40) == pytest.approx(
        training.score(model, tokens, 8), abs=0.5
    )


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_dropped_weights_are_recurrent_weights_only(kind):
    torch.manual_seed(0)
    model = models.Awd(kind, 8, 16, 16, 1, models.Drop(weight=0.5))
    ids = torch.arange(8)[None]
    plain, first = model.eval()(ids)[0], model.train()(ids)[0]
    assert torch.allclose(plain[:, 0], first[:, 0], atol=1e-6)  # from rest, the recurrent matrix meets zeros
    assert not torch.allclose(plain[:, 1:], first[:, 1:], atol=1e-4)


def test_locked_dropout_drops_the_same_features_at_all_tokens():
    model = models.Awd("lstm", 8, 16, 16, 1, models.Drop(output=0.5)).train()
    dropped = (model(torch.arange(8).repeat(4, 1))[0] == 0).float()
    assert 0.2 < dropped.mean() < 0.8
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))


def test_time_ends_a_budget_and_tokens_do(monkeypatch):
    plan = training.Plan(1e-3, batch=2, length=8)
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    timed = training.fit(tiny("gru"), CYCLE, CYCLE[:60], plan, training.Budget(seconds=1.0))
    assert timed.steps == 4
    counted = training.fit(tiny("gru"), CYCLE, CYCLE[:60], plan, training.Budget(tokens=70))
    assert counted.tokens == 80  # whole steps of 16


def test_the_best_weights_are_kept():
    model, result = tiny("gru"), training.Fit()
    best = training._validate(model, CYCLE, result, {}, None)
    before = training.score(model, CYCLE)
    with torch.no_grad():
        model.head.bias[0] = 9.0
    assert training._validate(model, CYCLE, result, best, None) is best
    assert result.curve[1][2] > result.curve[0][2] == result.best_loss
    model.load_state_dict(best)
    assert training.score(model, CYCLE) == before


@pytest.mark.parametrize("target", [20_000, 60_000])
@pytest.mark.parametrize("name", ["lstm", "gpt2"])
def test_widths_match_parameters(name, target):
    for vocabulary in (60, 1200):
        entry = settings.baselines(vocabulary)[name]
        width = settings.baseline_width(entry, vocabulary, target)
        counts = [
            abs(entry.make(vocabulary, w).parameter_count() - target) for w in (width - 8, width, width + 8) if w > 0
        ]
        assert abs(entry.make(vocabulary, width).parameter_count() - target) == min(counts)


def test_liquid_width_counts_what_is_trained():
    model = {"block": "liquid", "coupling": "diagonal", "num_layers": 2, "tie_embeddings": True}
    width = settings.liquid_width(model, 500, 30_000)
    count = models.Liquid.of(500, **model, hidden_size=width).parameter_count()
    assert count == pytest.approx(30_000, rel=0.15)


def test_words_are_those_of_the_training_part(tmp_path):
    from ltc_textgen.config import DataConfig
    from ltc_textgen.data.token_cache import prepare

    corpus, tail = tmp_path / "text.txt", "the dog saw the cat , also . the\na bird ran\n"
    corpus.write_text(TEXT[: 9 * len(tail)] + tail)  # the cut after nine tenths falls between lines
    path = word_tokenizer(str(corpus), tmp_path)
    data = prepare(DataConfig(data=str(corpus), tokenizer=str(path)))
    names = [data.tokenizer.token(i) for i in range(data.tokenizer.vocab_size)]
    assert sorted(names) == sorted(["<eos>", "<unk>", "the", "cat", "saw", "dog", "."])  # the others come later
    assert (data.train_unknown, data.valid_unknown) == (0, 5)
    last = [names[i] for i in data.valid[-6:]]
    assert last == ["the", "<eos>", "<unk>", "<unk>", "<unk>", "<eos>"]
    assert data.tokenizer.eos_token == "<eos>"


def output(capsys) -> tuple[str, dict]:
    lines = capsys.readouterr().out.splitlines()
    return "\n".join(lines[:-1]), json.loads(lines[-1])


@pytest.mark.slow
def test_the_language_benchmark_compares_and_resumes(tmp_path, capsys, monkeypatch):
    corpus, out, picture = tmp_path / "text.txt", tmp_path / "results.json", tmp_path / "curves.png"
    corpus.write_text(TEXT * 4)
    block = settings.Ours({"block": "liquid", "coupling": "diagonal", "num_layers": 1, "batch_size": 4})
    small = training.Plan(1e-2, batch=4, length=16, validations=2)
    lstm = {"lstm": settings.Baseline(lambda v, width: models.Awd("lstm", v, width, width, 1), 16, small)}
    monkeypatch.setattr(language, "ours", lambda vocabulary: block)
    monkeypatch.setattr(language, "baselines", lambda vocabulary: lstm)
    common = ["--corpus", str(corpus), "--tokens", "2000", "--parameters", "4000", "--threads", "1"]
    language.main([*common, "--out", str(out), "--seeds", "0"])
    capsys.readouterr()
    language.main([*common, "--out", str(out), "--seeds", "0,1", "--tune", "--models", "lstm"])
    _, tuned = output(capsys)
    assert set(tuned["results"][0]["how"]["tried_learning_rates"]) == {"0.005", "0.01", "0.02"}
    before = json.loads(out.read_text())
    language.main([*common, "--out", str(out), "--seeds", "0,1", "--plot", str(picture)])
    shown, result = output(capsys)
    rows = {(row["model"], row["seed"]): row for row in result["results"]}
    assert set(rows) == {("liquid", 0), ("lstm", 0), ("liquid", 1), ("lstm", 1)}
    after = json.loads(out.read_text())
    assert all(after[key] == row for key, row in before.items())
    assert len(after) == len(before) + 2  # seed 1 of both; what was done is not repeated
    for row in rows.values():
        assert 2000 <= row["tokens"] < 2000 + 4 * 64
        assert row["parameters"] == pytest.approx(4000, rel=0.4)
        assert row["carried"] < math.log(25)
        assert row["curve"][-1][1] == row["tokens"]
    assert rows["liquid", 0]["carried"] != rows["liquid", 1]["carried"]
    assert "| liquid |" in shown
    assert "±" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_language_benchmark_says_what_it_does_not_know(tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_text(TEXT)
    with pytest.raises(SystemExit, match="gpt3"):
        language.main(["--corpus", str(corpus), "--models", "gpt3"])
    with pytest.raises(SystemExit):
        language.main(["--corpus", str(corpus), "--budget", "soon"])


@pytest.mark.slow
def test_ablations_change_what_they_name(tmp_path, capsys):
    corpus, out = tmp_path / "text.txt", tmp_path / "ablation.json"
    corpus.write_text(TEXT)
    size = ["--steps", "3", "--width", "8", "--batch", "2", "--length", "8"]
    given = ["--corpus", str(corpus), *size, "--seeds", "0", "--out", str(out)]
    ablation.main(given)
    shown, result = output(capsys)
    rows = {(row["group"], row["name"]): row for row in result["results"]}
    assert set(rows) == {(v.group, v.name) for v in ablation.VARIANTS}
    assert shown.count("\n") == len(rows) + 1 + 1
    base = rows["block", "base: liquid, semi-implicit, 1 sub-step"]
    neurons = 2 * 16
    frozen = rows["block", "input-only gates (r frozen at 0)"]
    assert base["trainable"] - frozen["trainable"] == 2 * neurons
    assert base["trainable"] - rows["block", "C, g_leak and E frozen"]["trainable"] == 4 * neurons
    assert rows["block", "an MLP after each mixer"]["trainable"] > base["trainable"]
    scores = [row["carried"] for row in rows.values() if row["group"] == "block" and "frozen" not in row["name"]]
    assert len(set(scores)) == len(scores)  # every change changes something
    stamp = out.stat().st_mtime_ns
    ablation.main(given)
    assert out.stat().st_mtime_ns == stamp  # nothing was run again
    capsys.readouterr()


def test_thinned_text_knows_its_gaps():
    tokens, gaps = ablation.thinned(np.arange(1000), 0)
    assert 600 < len(tokens) < 800
    assert (tokens[:-1] + gaps[:-1] == tokens[1:]).all()


def test_frozen_parameters_must_exist():
    with pytest.raises(AssertionError, match="log_resistance"):
        ablation.freeze("log_resistance")(tiny("liquid"))


def test_answers_of_the_state_tracking_tasks():
    draw = np.random.default_rng(0)
    for task, modulus in (("parity", 2), ("mod5", 5)):
        tokens, answers = state_tracking.sequences(task, 3, 50, draw)
        assert all(int(tokens[1, : t + 1].sum()) % modulus == answers[1, t] for t in range(50))
    tokens, answers = state_tracking.sequences("dyck2", 8, 200, draw)
    deepest = 0
    for row, right in zip(tokens.tolist(), answers.tolist(), strict=True):
        text = "".join("([)]"[token] for token in row)
        for t in range(200):
            left = text[: t + 1]
            while (shorter := left.replace("()", "").replace("[]", "")) != left:
                left = shorter
            assert not set(left) & set(")]")
            assert right[t] == {"": 0, "(": 1, "[": 2}[left[-1:]]
            deepest = max(deepest, len(left))
    assert deepest == state_tracking.DEPTH


def test_state_tracking_learns_and_resumes(tmp_path, capsys):
    out = tmp_path / "tracking.json"
    given = ["--seeds", "0", "--tasks", "dyck2", "--steps", "60", "--width", "16", "--batch", "16", "--out", str(out)]
    state_tracking.main([*given, "--only", "nn.LSTM"])
    _, result = output(capsys)
    (row,) = result["results"]
    assert list(row["accuracy"]) == ["40", "100", "256", "512"]
    assert row["accuracy"]["40"] > 0.6  # always answering "none" gives less
    stamp = out.stat().st_mtime_ns
    state_tracking.main([*given, "--only", "nn.LSTM"])
    assert out.stat().st_mtime_ns == stamp
    assert "| nn.LSTM |" in output(capsys)[0]


def test_input_only_gates_stay_so():
    model = state_tracking.contenders(16)["liquid, diagonal, input-only gates (r = 0)"](2, 2)
    plan = training.Plan(1e-2, batch=4, weight_decay=0.0)
    state_tracking.train(model, "parity", plan, 3, 0)
    assert all(not layer.cell.self_weight.any() for layer in model.network.layers)


def test_the_best_learning_rate_is_chosen_at_the_trained_length():
    rows = [
        {"learning_rate": rate, "accuracy": {"40": at_40, "512": at_512}}
        for rate, at_40, at_512 in ((0.1, 0.9, 0.2), (0.1, 0.7, 0.3), (0.2, 0.6, 0.9))
    ]
    assert [row["learning_rate"] for row in state_tracking.best_rate(rows)] == [0.1, 0.1]
