import os
import random
import shutil
import signal
import time
from contextlib import suppress

import pytest
from training_runs import Listener, Process, assert_same_run, curve, metrics, settings, write_corpus

from ltc_textgen.data import token_cache
from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.runs import load_run
from ltc_textgen.training import loop as loop_module
from ltc_textgen.training import resume as identity_module
from ltc_textgen.training import session as session_module
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.loop import train
from ltc_textgen.training.session import Watch

STEPS = 45
KILLS = int(os.environ.get("LTC_TEST_KILLS", "3"))


def plan(corpus, **train):
    """Neither validations nor checkpoints nor lines of metrics coincide, and the epoch (42 windows) ends within."""
    return settings(corpus, **{"max_steps": STEPS, "eval_steps": 14, "save_steps": 6, "learning_rate": 0.02, **train})


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(plan(corpus, batch_size=16), out, reporter=Listener())
    return out


def stop_at(step, number=signal.SIGTERM):
    def after(pace):
        if pace.step == step:
            os.kill(os.getpid(), number)

    return Listener(after)


class CrashError(Exception):
    pass


def crash_at(step):
    def after(pace):
        if pace.step == step:
            raise CrashError

    return Listener(after)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 14, 17, 42, 44])
def test_stopped_by_a_signal_and_resumed_it_is_the_same_run(uninterrupted, corpus, tmp_path, step):
    run, out = plan(corpus, batch_size=16), tmp_path / "run"
    stopped = train(run, out, reporter=stop_at(step))
    assert (stopped.step, stopped.stopped_by, stopped.exit_code) == (step, "SIGTERM", 143)
    assert load_run(out).model is not None, "a stopped run can write text"
    result = train(run, out, resume=True, reporter=Listener())
    assert (result.step, result.stopped_by, result.exit_code) == (STEPS, None, 0)
    assert_same_run(out, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 13, 29, 42])
def test_crashed_between_checkpoints_and_resumed_it_is_the_same_run(uninterrupted, corpus, tmp_path, step):
    run, out = plan(corpus, batch_size=16), tmp_path / "run"
    with pytest.raises(CrashError):
        train(run, out, reporter=crash_at(step))
    listener = Listener()
    train(run, out, resume=True, reporter=listener)
    assert listener.paces[0].step == (step - 1) // 6 * 6 + 1
    assert_same_run(out, uninterrupted)


@pytest.mark.slow
def test_crashed_in_the_middle_of_a_validation_it_is_the_same_run(uninterrupted, corpus, tmp_path, monkeypatch):
    from ltc_textgen.training import validation

    run, out, original = plan(corpus, batch_size=16), tmp_path / "run", validation.score_tokens
    calls = []

    def crash(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise CrashError
        return original(*args, **kwargs)

    monkeypatch.setattr(validation, "score_tokens", crash)
    with pytest.raises(CrashError):
        train(run, out, reporter=Listener())
    train(run, out, resume=True, reporter=Listener())
    assert_same_run(out, uninterrupted)


@pytest.mark.slow
def test_better_weights_of_steps_that_are_made_again_do_not_stay(corpus, tmp_path):
    """The best weights are those of the checkpoint, even if a lost validation had written later ones."""
    run, out = plan(corpus, eval_steps=7, save_steps=20), tmp_path / "run"
    with pytest.raises(CrashError):
        train(run, out, reporter=crash_at(37))
    kept = (list_checkpoints(out)[0] / "best.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() != kept
    restored = []
    listener = Listener(lambda pace: restored.append((out / "model.safetensors").read_bytes()))
    train(run, out, resume=True, reporter=listener)
    assert listener.paces[0].step == 21
    assert restored[0] == kept


@pytest.mark.slow
def test_resuming_many_times_is_the_same_run(uninterrupted, corpus, tmp_path):
    run, out = plan(corpus, batch_size=16), tmp_path / "run"
    for step in (3, 4, 14, 30, 31):
        assert train(run, out, resume=True, reporter=stop_at(step, signal.SIGINT)).exit_code == 130
    train(run, out, resume=True, reporter=Listener())
    assert_same_run(out, uninterrupted)


class Ticking(Watch):
    """A clock on which every step and every validation takes a time of its own, always the same."""

    def __init__(self, stop, seconds=0.0):
        self.now = seconds
        super().__init__(stop, seconds, clock=lambda: self.now)

    def share(self, session, finite, loss):
        self.now += 0.05 + 0.001 * (session.progress.step % 7)
        return super().share(session, finite, loss)

    def lap(self, session, value=0.0):
        # A checkpoint takes no time here: its own time cannot be in it, and is lost with a crash.
        self.now += 0.04 if session.saved_step != session.progress.step else 0.0
        return super().lap(session, value)


@pytest.mark.slow
def test_a_run_by_time_continues_from_the_recorded_seconds(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "Watch", Ticking)
    run = settings(corpus, time_budget=3.0, eval_steps=14, save_steps=5, learning_rate=0.02)
    train(run, tmp_path / "whole", reporter=Listener())
    for step in (9, 23, 38):
        with pytest.raises(CrashError):
            train(run, tmp_path / "run", resume=True, reporter=crash_at(step))
    result = train(run, tmp_path / "run", resume=True, reporter=Listener())
    assert result.seconds == pytest.approx(3.0, abs=0.1)
    assert len({line["learning_rate"] for line in metrics(tmp_path / "run")}) > 4
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_gives_the_same_run(uninterrupted, corpus, tmp_path):
    run, out = plan(corpus, batch_size=16), tmp_path / "run"
    train(run, out, reporter=stop_at(33))
    newest = list_checkpoints(out)[0]
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-100] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    listener = Listener()
    train(run, out, resume=True, reporter=listener)
    rejections = [note for note in listener.notes if "optimizer.safetensors" in note]
    assert len(rejections) == 1
    assert f"{newest.name}/optimizer.safetensors" in rejections[0]
    assert listener.paces[0].step == 31
    assert_same_run(out, uninterrupted)


def test_if_every_checkpoint_is_damaged_the_run_is_left_as_it_is(corpus, tmp_path):
    run, out = plan(corpus, max_steps=12), tmp_path / "run"
    train(run, out, reporter=Listener())
    for path in list_checkpoints(out):
        (path / "progress.json").unlink()
    before = curve(out)
    with pytest.raises(ArtifactError, match=r"progress\.json"):
        train(run, out, resume=True, reporter=Listener())
    assert curve(out) == before


@pytest.fixture(scope="module")
def stopped(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    train(plan(corpus), out, reporter=stop_at(8))
    return out


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        ({"batch_size": 8}, {}, "batch_size is 8, the checkpoint's is 4"),
        ({"sequence_length": 32}, {}, "sequence_length is 32, the checkpoint's is 16"),
        ({}, {"hidden_size": 24}, "model.hidden_size is 24, the checkpoint's is 16"),
        ({}, {"solver": "exponential"}, "model.solver"),
    ],
)
def test_resuming_as_another_run_is_rejected_in_one_line(stopped, corpus, change, model, message):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file() and not p.name.startswith(".")}
    run = settings(corpus, model, **{"max_steps": STEPS, "eval_steps": 14, "save_steps": 6, **change})
    with pytest.raises(UsageError, match=f"cannot resume: {message}") as caught:
        train(run, stopped, resume=True, reporter=Listener())
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in before} == before


def test_resuming_with_another_corpus_or_tokenizer_is_rejected(stopped, corpus, tmp_path):
    # The same words, so that the vocabulary stays the same.
    other = write_corpus(tmp_path, seed=1)
    with pytest.raises(UsageError, match="corpus"):
        train(plan(other), stopped, resume=True, reporter=Listener())
    run = plan(corpus)
    run = run.model_copy(update={"data": run.data.model_copy(update={"tokenizer": "byte"})})
    with pytest.raises(UsageError, match="tokenizer"):
        train(run, stopped, resume=True, reporter=Listener())


def test_a_later_version_may_tokenise_into_another_cache_and_know_more_settings(stopped, corpus, tmp_path, monkeypatch):
    from ltc_textgen import config

    class Later(config.ModelConfig):
        novelty: int = 3

    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    monkeypatch.setattr(token_cache, "FORMAT", token_cache.FORMAT + 1)
    monkeypatch.setattr(identity_module, "ModelConfig", Later)
    original = session_module.build

    def build(*args):
        session = original(*args)
        session.model.settings = Later(**session.model.settings.model_dump())
        return session

    monkeypatch.setattr(loop_module, "build", build)
    listener = Listener()
    train(plan(corpus, max_steps=9), out, resume=True, reporter=listener)
    assert listener.paces[0].step == 9


def test_other_settings_may_change_and_are_reported(stopped, corpus, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    listener = Listener()
    result = train(plan(corpus, max_steps=12, weight_decay=0.0), out, resume=True, reporter=listener)
    assert result.step == 12
    (note,) = (note for note in listener.notes if "max_steps 45 -> 12" in note)
    assert "weight_decay 0.1 -> 0.0" in note


def test_resuming_what_has_not_begun_begins(corpus, tmp_path):
    listener = Listener()
    assert train(plan(corpus, max_steps=3), tmp_path / "run", resume=True, reporter=listener).step == 3
    assert listener.paces[0].step == 1
    assert any("checkpoint" in note for note in listener.notes)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_is_the_same_run(uninterrupted, corpus, tmp_path):
    """SIGKILL of a real process: in steps, in validations and in the middle of checkpoints."""
    run, draw = plan(corpus, batch_size=16), random.Random(5)
    killed = runs = 0
    out = tmp_path / "0"
    while killed < KILLS or not list_checkpoints(out) or list_checkpoints(out)[0].name != f"step-{STEPS:08d}":
        process = Process(run, out, resume=True)
        process.wait_for("resumed at" if list_checkpoints(out) else "made ")
        if killed < KILLS:
            time.sleep(draw.uniform(0, 0.1))
            with suppress(ProcessLookupError):
                process.send(signal.SIGKILL)
        code = process.end()
        killed += code == -signal.SIGKILL
        if code == 0 and killed < KILLS:  # it came to its end before the kill: the next one hits another run
            assert_same_run(out, uninterrupted)
            runs += 1
            out = tmp_path / str(runs)
    assert_same_run(out, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_gets_a_signal_saves_and_exits_with_its_code(uninterrupted, corpus, tmp_path, number, code):
    run, out = plan(corpus, batch_size=16), tmp_path / "run"
    process = Process(run, out)
    process.wait_for("made 3")
    process.send(number)
    assert process.end() == code
    assert any(number.name in line for line in process.lines)
    saved = int(list_checkpoints(out)[0].name.removeprefix("step-"))
    assert saved >= 3
    assert train(run, out, resume=True, reporter=Listener()).step == STEPS
    assert_same_run(out, uninterrupted)


@pytest.mark.slow
def test_the_error_of_the_second_run_in_a_directory_names_the_pid(corpus, tmp_path):
    run, out = plan(corpus, max_steps=100_000, eval_steps=100_000, save_steps=100_000), tmp_path / "run"
    first = Process(run, out)
    first.wait_for("made 2")
    second = Process(run, out)
    assert second.end() == 1
    assert any(f"process {first.pid} on " in line for line in second.lines), second.lines
    first.send(signal.SIGTERM)
    assert first.end() == 143
