import itertools
from functools import partial

import pytest
from training_runs import Listener, settings, write_corpus

from ltc_textgen.config import TrainConfig
from ltc_textgen.training import loop
from ltc_textgen.training.budget import FRACTION, Budget
from ltc_textgen.training.loop import train
from ltc_textgen.training.progress import Progress
from ltc_textgen.training.session import Watch


def test_steps_come_from_max_steps_or_from_epochs():
    assert Budget.plan(TrainConfig(max_steps=7), 100, 10).steps == 7
    assert Budget.plan(TrainConfig(epochs=3), 100, 10).steps == 300
    assert Budget.plan(TrainConfig(), 100, 10).steps == 100


def test_a_run_by_steps_validates_about_twenty_times_if_that_is_cheap():
    assert Budget.plan(TrainConfig(max_steps=2000), 100, 10).eval_steps == 100
    assert Budget.plan(TrainConfig(max_steps=2000, eval_steps=7), 100, 10).eval_steps == 7
    # 100 windows to validate on cost as much as 40 steps, which may be a tenth of the time between.
    assert Budget.plan(TrainConfig(max_steps=200), 100, 100 * 16 * 64).eval_steps == 400


def test_a_run_by_steps_is_over_after_its_steps():
    budget = Budget.plan(TrainConfig(max_steps=10), 100, 10)
    assert not budget.is_over(Progress(step=9, seconds=1e9))
    assert budget.is_over(Progress(step=10))
    assert budget.done(Progress(step=5)) == 0.5
    assert budget.remaining(Progress(step=4, seconds=8.0)) == pytest.approx(12.0)
    assert budget.remaining(Progress()) is None


def progress(seconds, **more):
    """A run at 1,000 tokens per second and 10 steps per second."""
    steps = round(seconds * 10)
    return Progress(step=steps, seconds=seconds, stepping_seconds=seconds - 0.1, tokens=round(seconds * 1000), **more)


def test_a_run_by_time_keeps_time_for_its_last_validation():
    budget = Budget.plan(TrainConfig(time_budget=100.0), 100, 10_000)
    assert budget.reserve(progress(50.0, validation_seconds=7.0)) == 7.0
    assert not budget.is_over(progress(92.9, validation_seconds=7.0))
    assert budget.is_over(progress(93.0, validation_seconds=7.0))
    assert budget.done(progress(46.5, validation_seconds=7.0)) == pytest.approx(0.5)
    assert budget.done(progress(99.0, validation_seconds=7.0)) == 1.0


def test_a_run_by_time_makes_a_step_however_short_it_is():
    budget = Budget.plan(TrainConfig(time_budget=1e-9), 100, 10_000)
    assert not budget.is_over(Progress(seconds=0.1))
    assert budget.is_over(progress(0.1))


def test_a_run_by_time_validates_no_more_than_its_fraction():
    budget = Budget.plan(TrainConfig(time_budget=100.0), 100, 10)
    assert not budget.validation_is_due(progress(4.9, validation_seconds=0.1))
    assert budget.validation_is_due(progress(5.1, validation_seconds=0.1))
    costly = {"validation_seconds": 1.0, "validated_at": 10.0}
    assert not budget.validation_is_due(progress(10.0 + 0.9 / FRACTION, **costly))
    assert budget.validation_is_due(progress(10.0 + 1.1 / FRACTION, **costly))
    assert not budget.validation_is_due(progress(97.0, validation_seconds=1.0, validated_at=60.0)), "the last is near"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_a_run_ends_with_its_budget_and_has_validated(tmp_path, monkeypatch, seconds):
    monkeypatch.setenv("LTC_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path, words=20_000)
    ticks = itertools.count()  # a clock on which every look takes 20 ms
    monkeypatch.setattr(loop, "Watch", partial(Watch, clock=lambda: 0.02 * next(ticks)))
    listener = Listener()
    result = train(settings(corpus, time_budget=seconds), tmp_path / "run", reporter=listener)
    assert result.seconds == pytest.approx(seconds, abs=0.2)
    assert result.best_val_loss is not None
    assert listener.validations[-1].step == result.step
    assert listener.paces[-1].learning_rate < 0.2 * max(pace.learning_rate for pace in listener.paces)


def test_a_budget_too_short_for_anything_still_validates_and_saves(corpus, tmp_path):
    result = train(settings(corpus, time_budget=0.001), tmp_path / "run", reporter=Listener())
    assert result.step == 1
    assert result.best_val_loss is not None
    assert (tmp_path / "run" / "model.safetensors").exists()
