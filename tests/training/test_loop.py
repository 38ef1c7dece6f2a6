import json
import re

import pytest
import torch
from training_runs import Listener, last_weights, metrics, settings, write_corpus

from ltc_textgen.errors import DataError, LTCError, UsageError
from ltc_textgen.evaluation import score_tokens
from ltc_textgen.runs import load_run
from ltc_textgen.training import loop as loop_module
from ltc_textgen.training import step as step_module
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.loop import train
from ltc_textgen.training.metrics import log_interval


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A run of 60 steps, and what it reported."""
    out, listener = tmp_path_factory.mktemp("finished") / "run", Listener()
    run = settings(corpus, max_steps=60, eval_steps=20, learning_rate=0.02)
    return train(run, out, reporter=listener), listener, run


def test_it_learns(finished):
    result, _, _ = finished
    assert result.step == 60
    assert result.stopped_by is None
    assert result.exit_code == 0
    assert result.tokens == 60 * 4 * 16
    first = metrics(result.out)[0]["loss"]
    assert result.best_val_loss < first - 0.5


def test_the_run_directory_loads_and_holds_the_best_weights(finished):
    result, _, run = finished
    loaded = load_run(result.out)
    assert loaded.config == run
    valid = loaded.facts["valid_tokens"]
    from ltc_textgen.data.token_cache import prepare

    data = prepare(run.data)
    assert len(data.valid) == valid
    nll, tokens = score_tokens(loaded.model, data.valid)
    assert nll / tokens == pytest.approx(result.best_val_loss, abs=1e-6)
    assert loaded.facts["result"]["best_val_loss"] == result.best_val_loss


def test_last_and_best_are_different_things(corpus, tmp_path):
    """With a learning rate that ruins the model after the first validation, the best weights stay."""
    run = settings(
        corpus, max_steps=40, eval_steps=20, learning_rate=0.02, warmup_ratio=0.0, min_learning_rate_ratio=1.0
    )
    validated = []

    def ruin(pace):
        if pace.step == 20:
            validated.append(pace.step)

    original = step_module.rate_factor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "rate_factor", lambda p, *a: original(p, *a) * (50.0 if p >= 0.5 else 1.0))
        result = train(run, tmp_path / "run", reporter=Listener(ruin))
    assert result.best_step == 20
    assert result.val_loss > result.best_val_loss + 0.1
    best = load_run(tmp_path / "run").model.state_dict()
    last = last_weights(tmp_path / "run")
    assert not torch.equal(best["lm_head.projection.weight"], last["lm_head.projection.weight"])


def test_metrics_hold_the_curve_and_the_samples(finished):
    result, listener, _ = finished
    lines = metrics(result.out)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [10, 20, 30, 40, 50, 60]
    assert all(line["tokens_per_second"] > 0 and line["learning_rate"] > 0 for line in steps)
    validations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in validations] == [20, 40, 60]
    for line in validations:
        assert line["gap"] == pytest.approx(line["val_loss"] - line["train_loss"])
        assert isinstance(line["sample"], str)
        assert line["seconds"] > 0
    assert [v.val_loss for v in listener.validations] == [line["val_loss"] for line in validations]
    assert [pace.step for pace in listener.paces] == list(range(1, 61))
    assert listener.closed


def test_only_the_last_checkpoints_are_kept(finished):
    assert [path.name for path in list_checkpoints(finished[0].out)] == ["step-00000060", "step-00000040"]


def test_a_directory_with_a_run_in_it_is_rejected_and_nothing_is_lost(finished, corpus):
    result, _, run = finished
    before = {path: path.read_bytes() for path in sorted(result.out.rglob("*")) if path.is_file()}
    with pytest.raises(UsageError, match="--resume.*--out"):
        train(run, result.out, reporter=Listener())
    after = {path: path.read_bytes() for path in sorted(result.out.rglob("*")) if path.is_file()}
    assert before == after


def test_a_finished_run_can_be_resumed_and_there_is_nothing_to_do(finished):
    result, _, run = finished
    curve = (result.out / "metrics.jsonl").read_bytes()
    again = train(run, result.out, resume=True, reporter=Listener())
    assert again == result
    assert (result.out / "metrics.jsonl").read_bytes() == curve


@pytest.mark.slow
def test_epochs_govern(corpus, tmp_path):
    listener = Listener()
    result = train(settings(corpus, epochs=2, batch_size=16), tmp_path / "run", reporter=listener)
    tokens = load_run(tmp_path / "run").facts["train_tokens"]
    assert result.step == 2 * ((tokens - 1) // 16 // 16)
    assert listener.paces[-1].total_steps == result.step


def test_without_a_length_it_is_one_epoch(corpus, tmp_path):
    result = train(settings(corpus, batch_size=32), tmp_path / "run", reporter=Listener())
    assert result.step == (load_run(tmp_path / "run").facts["train_tokens"] - 1) // 16 // 32


def test_two_lengths_are_rejected(corpus, tmp_path):
    with pytest.raises(UsageError, match="epochs.*time_budget"):
        train(settings(corpus, epochs=1, time_budget=5.0), tmp_path / "run", reporter=Listener())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_learning_rate_follows_the_schedule(corpus, tmp_path):
    listener = Listener()
    run = settings(corpus, max_steps=50, warmup_ratio=0.2, learning_rate=0.01, min_learning_rate_ratio=0.1)
    train(run, tmp_path / "run", reporter=listener)
    rates = [pace.learning_rate for pace in listener.paces]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[10] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.001, rel=0.05)


def test_data_that_cannot_be_had_leaves_no_directory_behind(corpus, tmp_path):
    with pytest.raises(DataError):
        train(settings(corpus.parent / "absent.txt", max_steps=1), tmp_path / "run", reporter=Listener())
    assert not (tmp_path / "run").exists()


def test_an_adaptive_head_is_ranked_by_the_counts_of_the_training_text(corpus, tmp_path):
    run = settings(corpus, {"head": "adaptive", "adaptive_cutoffs": [5]}, max_steps=2)
    train(run, tmp_path / "run", reporter=Listener())
    loaded = load_run(tmp_path / "run")
    assert loaded.model.lm_head.rank[loaded.tokenizer.encode(" ")[0]] == 0


@pytest.mark.slow
def test_bfloat16_trains_and_states_stay_float32(corpus, tmp_path):
    dtypes = set()

    def spy(session, reset):
        if session.state is not None:
            dtypes.update(tensor.dtype for tensor in session.state.neurons)
        return original(session, reset)

    original = step_module.start_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "start_state", spy)
        run = settings(corpus, max_steps=30, mixed_precision="bf16", learning_rate=0.02)
        result = train(run, tmp_path / "run", reporter=Listener())
        exact = train(settings(corpus, max_steps=30, learning_rate=0.02), tmp_path / "exact", reporter=Listener())
    assert dtypes == {torch.float32}
    assert result.best_val_loss == pytest.approx(exact.best_val_loss, abs=0.05)
    assert result.best_val_loss != exact.best_val_loss, "autocast changed nothing"


def test_the_same_seed_is_the_same_run_and_another_is_not(corpus, tmp_path):
    losses = [
        train(settings(corpus, max_steps=5, seed=seed), tmp_path / str(i), reporter=Listener()).best_val_loss
        for i, seed in enumerate((1, 1, 2))
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
def test_validating_does_not_change_what_is_learnt(corpus, tmp_path, monkeypatch):
    """Not even if scoring and writing draw from torch's generator, which dropout draws from too."""
    from ltc_textgen.training import validation

    def drawing(function):
        def call(*args, **kwargs):
            torch.rand(5)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(validation, "score_tokens", drawing(validation.score_tokens))
    monkeypatch.setattr(validation, "generate", drawing(validation.generate))
    for name, every in (("often", 3), ("once", 100)):
        train(settings(corpus, max_steps=12, eval_steps=every), tmp_path / name, reporter=Listener())
    often, once = last_weights(tmp_path / "often"), last_weights(tmp_path / "once")
    assert all(torch.equal(often[name], once[name]) for name in once)


def test_a_sample_prompt_begins_the_sample(corpus, tmp_path):
    listener = Listener()
    train(settings(corpus, max_steps=1, sample_prompt="the cat"), tmp_path / "run", reporter=listener)
    assert listener.validations[0].sample.startswith("the cat")
    assert len(listener.validations[0].sample) == len("the cat") + 8
    listener = Listener()
    train(settings(corpus, max_steps=1, sample_tokens=0), tmp_path / "none", reporter=listener)
    assert listener.validations[0].sample is None


@pytest.mark.slow
def test_overfitting_shows_as_a_gap(tmp_path, monkeypatch):
    monkeypatch.setenv("LTC_CACHE", str(tmp_path / "cache"))
    noise = write_corpus(tmp_path, words=160, seed=3)
    run = settings(noise, {"hidden_size": 64, "dropout": 0.0}, max_steps=150, batch_size=2, learning_rate=0.02)
    result = train(run, tmp_path / "run", reporter=Listener())
    assert result.val_loss - result.train_loss > 0.25
    assert metrics(tmp_path / "run")[-1]["gap"] > 0.25


def test_facts_are_kept_with_the_run(finished):
    facts = json.loads((finished[0].out / "training.json").read_text())["facts"]
    assert facts["valid_words"] > 0
    assert facts["valid_bytes"] > 0
    assert facts["parameters"] == sum(p.numel() for p in load_run(finished[0].out).model.parameters())


@pytest.mark.parametrize(("step", "every"), [(1, 10), (999, 10), (9999, 10), (10_000, 100), (1_000_000, 10_000)])
def test_lines_of_metrics_grow_rarer(step, every):
    assert log_interval(step) == every


def test_a_disk_that_fills_up_while_training_is_one_clear_line(corpus, tmp_path, monkeypatch):
    import errno
    import os

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(pace):
        if pace.step == 15:
            monkeypatch.setattr(os, "fsync", full)

    run = settings(corpus, max_steps=30, save_steps=10, eval_steps=30)
    listener = Listener(fill)
    with pytest.raises(LTCError, match="No space left on device") as caught:
        train(run, tmp_path / "run", reporter=listener)
    assert "--resume" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000010"]
    monkeypatch.undo()
    monkeypatch.setenv("LTC_CACHE", str(corpus.parent / "cache"))
    assert train(run, tmp_path / "run", resume=True, reporter=Listener()).step == 30


def test_the_time_of_checkpoints_is_not_that_of_steps(corpus, tmp_path, monkeypatch):
    now = [0.0]

    class Clock(loop_module.Watch):
        def __init__(self, stop, seconds=0.0):
            super().__init__(stop, seconds, clock=lambda: now[0])

        def share(self, *args):
            now[0] += 1.0
            return super().share(*args)

    def slow(session):
        save(session)
        now[0] += 1000.0

    save = loop_module.save
    monkeypatch.setattr(loop_module, "Watch", Clock)
    monkeypatch.setattr(loop_module, "save", slow)
    result = train(settings(corpus, max_steps=10, eval_steps=10, save_steps=3), tmp_path / "run", reporter=Listener())
    assert result.tokens_per_second == pytest.approx(4 * 16)
    assert result.seconds == pytest.approx(3010)


def test_unknown_characters_of_the_validation_text_are_reported(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LTC_CACHE", str(tmp_path / "cache"))
    odd = tmp_path / "odd.txt"
    odd.write_text(corpus.read_text()[:2000] + "\u00e9" * 7)
    listener = Listener()
    train(settings(odd, max_steps=1), tmp_path / "run", reporter=listener)
    assert [note for note in listener.notes if note.startswith("7 of the 2,00")]
    facts = load_run(tmp_path / "run").facts
    assert (facts["train_unknown"], facts["valid_unknown"]) == (0, 7)
    listener = Listener()
    train(settings(corpus, max_steps=1), tmp_path / "known", reporter=listener)
    assert not [note for note in listener.notes if re.match(r"\d+ of the ", note)]
