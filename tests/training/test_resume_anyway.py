"""Resuming with another corpus, tokenizer, batch or network: rejected, and with the flag done and explained."""

import random
import shutil

import pytest
import torch
from training_runs import Listener, last_weights, metrics, settings

from ltc_textgen.data.token_cache import prepare
from ltc_textgen.errors import UsageError
from ltc_textgen.generation import generate
from ltc_textgen.runs import load_run
from ltc_textgen.training import loop as loop_module
from ltc_textgen.training.loop import train

STEPS = 12


def plan(corpus, model=None, **train):
    return settings(
        corpus, model, **{"max_steps": STEPS, "eval_steps": 6, "save_steps": 4, "learning_rate": 0.02, **train}
    )


@pytest.fixture(scope="module")
def stopped(corpus, tmp_path_factory):
    """A run with a validation behind it, saved at step 8 of 12."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    train(plan(corpus, max_steps=8), out, reporter=Listener())
    return out


@pytest.fixture
def begun(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.fixture
def starts(monkeypatch):
    """The state and the weights from which each run resumes."""
    seen = []
    original = loop_module._begin

    def begin(session, *rest):
        ended = original(session, *rest)
        seen.append((session.state, {k: v.clone() for k, v in session.model.state_dict().items()}))
        return ended

    monkeypatch.setattr(loop_module, "_begin", begin)
    return seen


def shuffled(corpus, directory):
    """The same sentences in another order, so that the vocabulary is the same and its ids are, too."""
    lines = corpus.read_text().splitlines(keepends=True)
    random.Random(3).shuffle(lines)
    path = directory / "shuffled.txt"
    path.write_text("".join(lines))
    return path


def renamed(corpus, directory):
    """The same text in a tokenizer whose characters have other ids."""
    from ltc_textgen.data.train_tokenizer import character_tokenizer

    alphabet = sorted(set(corpus.read_text()))
    first = prepare(settings(corpus).data).tokenizer
    other = character_tokenizer(set(alphabet) - {"z"} | {"é"} if "z" in alphabet else {*alphabet[1:], "é"})
    assert other.vocab_size == first.vocab_size
    other.save(directory / "tokenizer")
    return directory / "tokenizer"


def other_run(kind, corpus, directory):
    if kind == "corpus":
        return plan(shuffled(corpus, directory))
    if kind == "tokenizer":
        run = plan(corpus)
        data = run.data.model_copy(update={"tokenizer": str(renamed(corpus, directory))})
        return run.model_copy(update={"data": data})
    change = {"batch_size": {"batch_size": 8}, "sequence_length": {"sequence_length": 8}}.get(kind, {})
    return plan(corpus, {"model": {"dropout": 0.0}}.get(kind), **change)


@pytest.mark.parametrize("kind", ["corpus", "tokenizer", "batch_size", "sequence_length", "model"])
def test_it_is_rejected_and_with_the_flag_done_and_explained(begun, corpus, tmp_path, starts, kind):
    run = other_run(kind, corpus, tmp_path)
    weights = last_weights(begun)
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file() and path.name[0] != "."}
    with pytest.raises(UsageError, match=f"{kind}.*--resume-anyway"):
        train(run, begun, resume=True, reporter=Listener())
    assert {path: path.read_bytes() for path in before} == before, "a rejection changes nothing"

    listener = Listener()
    result = train(run, begun, resume=True, anyway=True, reporter=listener)
    assert (listener.paces[0].step, result.step) == (9, STEPS), "it resumes, and does not start over"
    (warning,) = warnings(listener)
    assert kind in warning
    state, loaded = starts[0]
    assert state is None, "the states are reset"
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items()), "with the weights of before"

    written = load_run(begun)
    assert generate(written.model, written.tokenizer, "the", _sampling())[0].text
    again = Listener()
    more = run.model_copy(update={"train": run.train.model_copy(update={"max_steps": STEPS + 2})})
    assert train(more, begun, resume=True, reporter=again).step == STEPS + 2, "the run is now one with these settings"
    assert [line["step"] for line in metrics(begun) if line.get("val_loss")] == [6, 8, 12, 14]


def warnings(listener):
    """The notes on differences from the checkpoint."""
    return [note for note in listener.notes if " although " in note]


def _sampling():
    from ltc_textgen.config import SamplingConfig

    return SamplingConfig(max_tokens=3, seed=1)


@pytest.mark.parametrize(("kind", "forgotten"), [("corpus", True), ("model", True), ("batch_size", False)])
def test_losses_that_cannot_be_compared_are_reset(begun, corpus, tmp_path, kind, forgotten):
    """Else the best weights would stay those of a text that was easier."""
    import json

    path = sorted((begun / "checkpoints").iterdir())[-1]
    record = json.loads((path / "progress.json").read_text())
    record["progress"]["best_loss"] = 1e-9
    (path / "progress.json").write_text(json.dumps(record))
    from ltc_textgen.io.checked import write_manifest

    write_manifest(path, {"format": "1"})
    result = train(other_run(kind, corpus, tmp_path), begun, resume=True, anyway=True, reporter=Listener())
    assert (result.best_step == STEPS) is forgotten


def test_weights_that_do_not_fit_are_rejected_with_the_flag_too(begun, corpus):
    before = last_weights(begun)
    with pytest.raises(UsageError, match="--resume-anyway"):
        train(plan(corpus, {"hidden_size": 24}), begun, resume=True, anyway=True, reporter=Listener())
    assert all(torch.equal(before[name], weight) for name, weight in last_weights(begun).items())


def test_several_differences_are_all_named(begun, corpus, tmp_path):
    run = plan(shuffled(corpus, tmp_path), batch_size=8)
    with pytest.raises(UsageError, match=r"corpus .*batch_size .*8.*4"):
        train(run, begun, resume=True, reporter=Listener())
    listener = Listener()
    train(run, begun, resume=True, anyway=True, reporter=listener)
    assert len(warnings(listener)) == 2


def test_the_flag_changes_nothing_where_nothing_differs(begun, corpus, tmp_path, starts):
    shutil.copytree(begun, tmp_path / "plain")
    train(plan(corpus), tmp_path / "plain", resume=True, reporter=Listener())
    listener = Listener()
    train(plan(corpus), begun, resume=True, anyway=True, reporter=listener)
    assert not warnings(listener)
    assert starts[1][0] is not None
    ours, theirs = last_weights(begun), last_weights(tmp_path / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_whose_new_settings_leave_no_steps_says_so_and_stays_loadable(begun, corpus, tmp_path):
    listener = Listener()
    result = train(plan(shuffled(corpus, tmp_path), max_steps=8), begun, resume=True, anyway=True, reporter=listener)
    assert result.step == 8
    assert any("--max-steps" in note for note in listener.notes)
    assert result.best_step == 8, "validated on the new text"
    assert load_run(begun).config.data.data.endswith("shuffled.txt")
    again = Listener()
    result = train(plan(shuffled(corpus, tmp_path), max_steps=8), begun, resume=True, reporter=again)
    assert result.step == 8
    assert not again.paces, "its checkpoint is of the new text, too"
