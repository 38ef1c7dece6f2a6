"""A loss that rises halves the learning rate once, and ends the run the second time; a resumed run does the same."""

import os
import signal

import pytest
from training_runs import Listener, assert_same_run, settings

from ltc_textgen.training import monitor
from ltc_textgen.training.loop import train
from ltc_textgen.training.monitor import DivergedError, rate_scale
from ltc_textgen.training.progress import Progress


class Run:
    """Losses as they come in, with a vocabulary of e**4 = 55."""

    def __init__(self, warm=True):
        self.progress, self.notes, self.warm = Progress(best_step=7), [], warm

    def see(self, loss, steps):
        for _ in range(steps):
            self.progress.step += 1
            self.progress.add_loss(loss)
            note = monitor.judge(self.progress, 6e-3, 4.0, self.warm, "RUN")
            self.notes += [note] if note else []


def test_a_loss_that_rises_halves_the_rate_and_the_second_time_ends_the_run():
    session = Run()
    session.see(1.0, 300)  # of the 3 nats learned one may be lost
    assert session.progress.lowest_loss == pytest.approx(1.0)
    session.see(1.9, 1000)
    assert not session.notes
    session.see(2.1, 2000)
    assert len(session.notes) == 1
    assert "rose from 1.000 to 2.0" in session.notes[0]
    assert rate_scale(session.progress, 6e-3) == 0.5
    session.see(1.5, 300)
    with pytest.raises(DivergedError, match=r"RUN: .*step \d+.*1\.5.*step 7"):
        session.see(3.9, 300)
    assert DivergedError.exit_code == 1


def test_spikes_are_no_divergence():
    session = Run()
    session.see(1.0, 200)
    for _ in range(5):
        session.see(20.0, 2)
        session.see(1.0, 300)
    assert not session.notes
    assert rate_scale(session.progress, 6e-3) == 1.0


def test_a_run_that_never_learns_has_diverged_after_the_warm_up():
    early = Run(warm=False)
    early.see(4.5, 1000)
    assert not early.notes
    session = Run()
    session.see(4.5, monitor.LEARNS)
    assert not session.notes
    session.see(4.5, 1)
    assert "4.500 nats, above the 4.000 that guessing costs" in session.notes[0]
    session.see(4.5, monitor.LEARNS)
    with pytest.raises(DivergedError, match=r"step \d+"):
        session.see(4.5, 1)


def test_another_learning_rate_resets_the_counters():
    session = Run()
    session.see(1.0, 200)
    session.see(3.5, 300)
    assert len(session.notes) == 1
    assert rate_scale(session.progress, 1e-3) == 1.0


@pytest.mark.slow
def test_the_halved_rate_is_kept_in_a_checkpoint(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "_limit", lambda progress, *_: 0.0 if progress.step == 20 else None)
    run = settings(
        corpus, max_steps=40, eval_steps=20, learning_rate=0.01, min_learning_rate_ratio=1.0, warmup_ratio=0.0
    )
    listener = Listener()
    train(run, tmp_path / "whole", reporter=listener)
    assert [note.split(":")[0] for note in listener.notes if "learning rate" in note] == ["step 20"]
    assert [pace.learning_rate for pace in listener.paces] == pytest.approx([0.01] * 20 + [0.005] * 20)
    stop = Listener(lambda pace: os.kill(os.getpid(), signal.SIGTERM) if pace.step == 25 else None)
    train(run, tmp_path / "parts", reporter=stop)
    train(run, tmp_path / "parts", resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_second_divergence_ends_the_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "_limit", lambda progress, *_: 0.0 if progress.step in (5, 12) else None)
    listener = Listener()
    with pytest.raises(DivergedError, match="step 12"):
        train(settings(corpus, max_steps=30), tmp_path / "run", reporter=listener)
    assert listener.closed
