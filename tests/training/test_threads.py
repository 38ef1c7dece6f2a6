"""One thread or all: measured at the start and when the speed drops; and nothing of the run is changed by it."""

import torch
from training_runs import Listener, assert_same_run, settings

from ltc_textgen.training import loop, threads
from ltc_textgen.training.loop import train
from ltc_textgen.training.progress import Progress
from ltc_textgen.training.session import Session
from ltc_textgen.training.threads import PAUSE, ThreadChoice


class Machine:
    """A clock on which a step takes `seconds[threads]`; and the run that it measures."""

    def __init__(self, monkeypatch, **seconds: float) -> None:
        self.now, self.threads, self.seconds = 0.0, 4, {int(key[1:]): value for key, value in seconds.items()}
        self.runtime, self.run, self.train = self, self, self
        self.usable_threads, self.chooses_threads = 4, True
        self.batch_size, self.sequence_length = 10, 10
        self.progress, self.reporter = Progress(), Listener()
        monkeypatch.setattr(threads, "try_step", lambda _: setattr(self, "now", self.now + self.seconds[self.threads]))

    @property
    def __class__(self) -> type:  # it stands in for a session
        return Session

    def use_threads(self, number: int) -> None:
        self.threads = number

    def choice(self) -> ThreadChoice:
        return ThreadChoice(self, 4, self.chooses_threads, clock=lambda: self.now)


def test_the_faster_is_taken_and_said(monkeypatch) -> None:
    for one, four, chosen in ((0.1, 0.2, 1), (0.2, 0.1, 4), (0.1, 0.102, 4)):
        machine = Machine(monkeypatch, t1=one, t4=four)
        choice = machine.choice()
        choice.measure()
        assert machine.threads == chosen
        assert choice.step_seconds is not None
        assert abs(choice.step_seconds - min(one, four)) < 0.01
        (note,) = machine.reporter.notes
        assert f"threads: {chosen} " in note


def test_a_number_that_the_user_names_stays(monkeypatch) -> None:
    machine = Machine(monkeypatch, t1=0.1, t4=9.0)
    machine.chooses_threads = False
    choice = machine.choice()
    choice.measure()
    choice.watch(1e-9)
    assert (machine.threads, choice.step_seconds, machine.reporter.notes) == (4, 9.0, [])


def test_a_drop_of_the_speed_measures_again(monkeypatch) -> None:
    machine = Machine(monkeypatch, t1=0.2, t4=0.1)
    choice = machine.choice()
    choice.measure()
    machine.seconds = {1: 0.2, 4: 2.0}  # a neighbour came
    machine.progress.seconds = PAUSE / 2
    choice.watch(50.0)
    assert machine.threads == 4, "not so soon again"
    machine.progress.seconds = PAUSE
    choice.watch(900.0)
    assert machine.threads == 4, "this is the measured speed"
    choice.watch(50.0)
    assert machine.threads == 1
    assert len(machine.reporter.notes) == 3


def test_measuring_changes_nothing_of_a_run(corpus, tmp_path, monkeypatch) -> None:
    run = settings(corpus, max_steps=4)
    train(run, tmp_path / "plain", reporter=Listener())
    monkeypatch.setattr(ThreadChoice, "of", classmethod(lambda cls, session: cls(session, 1, True)))
    listener = Listener()
    train(run, tmp_path / "measured", reporter=listener)
    assert any(note.startswith("threads: 1 ") for note in listener.notes)
    assert_same_run(tmp_path / "plain", tmp_path / "measured")


def test_a_resumed_run_keeps_the_threads_of_its_checkpoint(corpus, tmp_path, monkeypatch) -> None:
    run = settings(corpus, max_steps=1, threads=None)
    monkeypatch.setattr("ltc_textgen.training.distributed._set_threads", lambda *_: 2)
    monkeypatch.setattr(ThreadChoice, "_time", lambda self, number: float(number))
    used = []
    monkeypatch.setattr(
        loop, "train_step", lambda *given, step=loop.train_step: (used.append(torch.get_num_threads()), step(*given))[1]
    )
    train(run, tmp_path / "run", reporter=Listener())
    monkeypatch.setattr(ThreadChoice, "_time", lambda self, number: 1.0 / number)
    train(settings(corpus, max_steps=2, threads=None), tmp_path / "run", resume=True, reporter=Listener())
    assert used == [1, 1]
