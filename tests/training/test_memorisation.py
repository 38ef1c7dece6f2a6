"""The gap between training and validation, when it is reported and what it advises."""

import json

import pytest
from training_runs import TINY, Listener, settings, write_corpus

from ltc_textgen.training.loop import train
from ltc_textgen.training.monitor import IN_A_ROW, memorisation, watch
from ltc_textgen.training.progress import Progress


@pytest.mark.parametrize(
    ("losses", "advice"),
    [
        ((1.5, 1.45, 1.5, 100), None),
        ((1.51, 1.45, 1.5, 100), None),
        ((1.6, 1.0, 1.5, 100), r"step 100 .*1.500.*1.600.*1.000.*0.600"),
        ((1.5, 1.0, 1.5, 100), "1.000.*0.500.*1.500"),
        ((1.6, 1.7, 1.5, 100), None),
    ],
)
def test_what_is_advised(losses, advice):
    found = memorisation(*losses)
    assert found.gap == pytest.approx(losses[0] - losses[1])
    assert found.risen == pytest.approx(losses[0] - losses[2])
    if advice is None:
        assert found.advice is None
    else:
        import re

        assert re.search(advice, found.advice)
        assert "dropout" in found.advice
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_shift_of_the_text_is_not_called_memorization():
    """Case: the last tenth of the corpus is in another language."""
    for losses in ((1.6, 1.0, 1.5, 100), (1.5, 1.0, 1.5, 100)):
        advice = memorisation(*losses, unlike=True).advice
        assert "unlike" in advice
        assert "--valid" in advice
        assert "memori" not in advice
    assert memorisation(1.5, 1.45, 1.5, 100, unlike=True).advice is None
    progress, listener = Progress(best_loss=1.0, best_step=1, train_loss=0.5), Listener()
    for _ in range(IN_A_ROW + 2):
        progress.val_loss = 1.2
        watch(progress, listener, unlike=True)
    assert not listener.notes


def test_nothing_is_judged_without_a_validation():
    assert memorisation(None, 1.0, None, None) is None
    assert memorisation(1.0, None, 1.0, 3) is None


def test_it_is_reported_once_per_row():
    progress, listener = Progress(best_loss=1.0, best_step=1, train_loss=0.5), Listener()
    for loss in (1.2,) * (IN_A_ROW + 2) + (1.0,) + (1.2,) * IN_A_ROW:
        progress.val_loss = loss
        watch(progress, listener)
    assert len(listener.notes) == 2


@pytest.mark.slow
def test_overfitting_is_reported_and_the_best_weights_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LTC_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path, words=150)
    run = settings(corpus, {"hidden_size": 32, "dropout": 0.0}, max_steps=180, eval_steps=30, learning_rate=0.03)
    listener = Listener()
    result = train(run, tmp_path / "run", reporter=listener)
    assert result.best_step < 180
    found = memorisation(result.val_loss, result.train_loss, result.best_val_loss, result.best_step)
    assert found.advice
    assert any(f"step {result.best_step}" in note for note in listener.notes)


@pytest.mark.slow
def test_the_command_reports_the_gap(tmp_path, ltc, monkeypatch):
    monkeypatch.setenv("LTC_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path, words=150)
    sets = {**TINY, "hidden_size": 32, "dropout": 0.0, "batch_size": 4, "sequence_length": 16, "sample_tokens": 0}
    options = [part for key, value in sets.items() for part in ("--set", f"{key}={str(value).lower()}")]
    options += ["--set", "eval_steps=30", "--max-steps", "150", "--set", "learning_rate=0.03"]
    plain = ltc("train", "--data", corpus, *options, "--tokenizer", "char", "--out", tmp_path / "a")
    assert plain.code == 0, plain.err
    reported = json.loads(
        ltc("train", "--data", corpus, *options, "--tokenizer", "char", "--out", tmp_path / "b", "--json").out
    )
    assert reported["memorisation"]["gap"] == pytest.approx(reported["val_loss"] - reported["train_loss"])
    assert reported["memorisation"]["advice"] in plain.out
