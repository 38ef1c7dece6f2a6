"""A run too short to validate on all of its held-out text."""

from training_runs import Listener, settings, write_corpus

from ltc_textgen.training import validation as validation_module
from ltc_textgen.training.loop import train


def test_it_validates_on_the_beginning_and_says_so(tmp_path, monkeypatch) -> None:
    corpus = write_corpus(tmp_path, words=60_000)
    run = settings(corpus, time_budget=0.4)
    monkeypatch.setattr(validation_module, "LONGEST", 1e-9)
    listener = Listener()
    result = train(run, tmp_path / "short", reporter=listener)
    probed = validation_module.ROWS * validation_module.PROBE_TOKENS + 1
    assert result.valid_tokens == probed - 1
    assert result.best_val_loss is not None
    (note,) = (note for note in listener.notes if "--valid-fraction" in note)
    assert f"{probed:,}" in note


def test_a_long_one_validates_on_all(tmp_path) -> None:
    listener = Listener()
    result = train(settings(write_corpus(tmp_path), time_budget=1.0), tmp_path / "run", reporter=listener)
    text = (tmp_path / "corpus0.txt").read_text()
    assert abs(result.valid_tokens - 0.1 * len(text)) < 3
    assert not any("--valid-fraction" in note for note in listener.notes)
