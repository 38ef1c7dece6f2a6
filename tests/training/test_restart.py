"""Lanes that begin anew now and then, and the state that they learn to begin from."""

import os
import signal

import torch
from training_runs import Listener, assert_same_run, settings, write_corpus

from ltc_textgen.artifacts import load_run
from ltc_textgen.training import step as step_module
from ltc_textgen.training.loop import train

BEGINNERS = {"optimizer": "muon", "muon_learning_rate": 0.02, "restart": 0.3}


def test_stopped_and_resumed_with_muon_and_restarts_it_is_the_same_run(tmp_path) -> None:
    corpus = write_corpus(tmp_path)
    run = settings(corpus, {"learned_start": True}, max_steps=20, eval_every=9, save_every=6, **BEGINNERS)
    train(run, tmp_path / "whole", reporter=Listener())

    def stop(pace) -> None:
        if pace.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(run, tmp_path / "stopped", reporter=Listener(stop)).step == 8
    train(run, tmp_path / "stopped", resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_the_share_of_windows_that_begin_anew(tmp_path, monkeypatch) -> None:
    begun, windows = 0, 0
    original = step_module.start_state

    def spy(session, reset):
        nonlocal begun, windows
        state = original(session, reset)
        if session.state is not None and not bool(reset.any()):
            same = (state.neurons[0] == session.state.neurons[0]).all(dim=1)
            begun, windows = begun + int((~same).sum()), windows + len(same)
        return state

    monkeypatch.setattr(step_module, "start_state", spy)
    train(settings(write_corpus(tmp_path), max_steps=60, batch_size=16, restart=0.25), tmp_path / "run")
    assert 0.18 < begun / windows < 0.32


def test_the_start_is_learned_and_used(tmp_path) -> None:
    run = settings(write_corpus(tmp_path), {"learned_start": True}, max_steps=30, **BEGINNERS)
    train(run, tmp_path / "run", reporter=Listener())
    model = load_run(tmp_path / "run").model
    state = model.initial_state(3)
    assert all(bool(tensor.any()) for tensor in (*state.neurons, *state.columns))
    ids = torch.zeros(3, 4, dtype=torch.long)
    torch.testing.assert_close(model.advance(ids)[0], model.advance(ids, state)[0])
    rest = state.map(torch.zeros_like)
    assert not torch.allclose(model.advance(ids)[0], model.advance(ids, rest)[0])
