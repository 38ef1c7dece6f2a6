"""Language models with an n-gram memory in the benchmarks: predictions are those that are scored."""

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import language
from lib import memory, models, settings, training

V = 8
CYCLE = np.tile(np.arange(V), 60)


def model_of(name: str) -> models.LanguageModel:
    torch.manual_seed(0)
    liquid = {"block": "liquid", "coupling": "diagonal", "hidden_size": 16, "steps": 1, "step_size": 1.0}
    make = {
        "liquid": lambda: models.Liquid.of(V, **liquid),
        "lstm": lambda: models.Awd("lstm", V, 16, 16, 1),
        "gpt2": lambda: models.Gpt2(V, 16, 16, 1, 2),
    }
    return make[name]()


@pytest.mark.parametrize("name", ["liquid", "lstm"])
def test_predictions_are_those_of_the_scores(name):
    model, tokens = model_of(name), np.random.default_rng(0).integers(0, V, 1200)
    losses = [-log_probs[np.arange(len(targets)), targets] for log_probs, targets in memory.predictions(model, tokens)]
    assert np.concatenate(losses).mean() == pytest.approx(training.score(model, tokens), abs=1e-5)


def test_a_transformer_predicts_each_token_once_from_three_quarters_of_its_context():
    model, tokens = model_of("gpt2"), np.random.default_rng(0).integers(0, V, 61)
    pairs = list(memory.predictions(model, tokens))
    assert np.concatenate([targets for _, targets in pairs]).tolist() == tokens[1:].tolist()
    assert [len(targets) for _, targets in pairs] == [16, *[4] * 11]
    with torch.no_grad():
        expected = torch.log_softmax(model.logits(model(torch.from_numpy(tokens[4:20])[None])[0][0, -4:]), -1)
    assert np.allclose(pairs[1][0], expected, atol=1e-5)


def test_a_memory_alone_learns_a_cycle_and_adapting_learns_what_is_new():
    other = np.tile(np.arange(V)[::-1], 60)
    same = memory.with_memory(None, CYCLE, CYCLE[:160], CYCLE, V, None, 4)
    assert same["alone"] == pytest.approx(math.log(V), abs=1e-5)
    assert same["static"] < 0.2
    new = memory.with_memory(None, CYCLE, CYCLE[:160], other, V, None, 4)
    assert new["static"] > math.log(V) > 3 * new["adapting"]


def test_the_benchmark_has_a_static_and_an_adapting_table(tmp_path, capsys, monkeypatch):
    corpus = tmp_path / "text.txt"
    corpus.write_text("the cat saw the dog . the dog saw the cat .\n" * 60)
    small = training.Plan(1e-2, batch=4, length=16, validations=2)
    lstm = {"lstm": settings.Baseline(lambda v, width: models.Awd("lstm", v, width, width, 1), 16, small)}
    monkeypatch.setattr(language, "baselines", lambda vocabulary: lstm)
    given = ["--corpus", str(corpus), "--steps", "3", "--threads", "1", "--seeds", "0", "--models", "lstm", "--memory"]
    language.main(given)
    *shown, document = capsys.readouterr().out.splitlines()
    found = json.loads(document)
    assert found["results"][0]["with_memory"]["static"] < found["results"][0]["with_memory"]["alone"]
    names = {"n-gram memory", *(["PPMd, order 6", "PPMd, order 8"] if find_spec("pyppmd") else [])}
    assert set(found["memories"]) == names
    assert sum(line.startswith("| lstm |") for line in shown) == 3
