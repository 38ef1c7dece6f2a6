"""Batch rows that are reset at random, and the learned initial state."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Listener, assert_same_run, last_weights, settings, write_corpus

from ltc_textgen.runs import load_run
from ltc_textgen.training import step as step_module
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.loop import train

BEGINNERS = {"optimizer": "muon", "muon_learning_rate": 0.02, "state_reset_prob": 0.3}


@pytest.mark.slow
def test_stopped_and_resumed_with_muon_and_restarts_it_is_the_same_run(tmp_path) -> None:
    corpus = write_corpus(tmp_path)
    run = settings(corpus, {"learned_initial_state": True}, max_steps=20, eval_steps=9, save_steps=6, **BEGINNERS)
    train(run, tmp_path / "whole", reporter=Listener())

    def stop(pace) -> None:
        if pace.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(run, tmp_path / "stopped", reporter=Listener(stop)).step == 8
    train(run, tmp_path / "stopped", resume=True, reporter=Listener())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(("first", "then"), [("muon", "adamw"), ("adamw", "muon")])
def test_a_run_resumes_with_another_optimizer(tmp_path, first, then) -> None:
    corpus, out = write_corpus(tmp_path), tmp_path / "run"
    train(settings(corpus, max_steps=6, **{**BEGINNERS, "optimizer": first}), out, reporter=Listener())
    listener = Listener()
    run = settings(corpus, max_steps=9, **{**BEGINNERS, "optimizer": then})
    assert train(run, out, resume=True, reporter=listener).step == 9
    assert [note for note in listener.notes if f"optimizer {first} -> {then}" in note]
    moments = load_file(list_checkpoints(out)[0] / "optimizer.safetensors")
    of_matrix = {key.rpartition("/")[2] for key in moments if key.startswith("layers.0.cell.input.weight/")}
    assert of_matrix == ({"momentum"} if then == "muon" else {"step", "exp_avg", "exp_avg_sq"})
    assert moments["embed_tokens.weight/step"] == 9, "parameters that both optimizers treat alike continue"


@pytest.mark.slow
def test_the_fraction_of_windows_that_are_reset(tmp_path, monkeypatch) -> None:
    begun, windows = 0, 0
    original = step_module.start_state

    def spy(session, reset):
        nonlocal begun, windows
        state = original(session, reset)
        if session.state is not None and not bool(reset.all()):
            same = (state.neurons[0] == session.state.neurons[0]).all(dim=1)
            begun, windows = begun + int((~same).sum()), windows + len(same)
        return state

    monkeypatch.setattr(step_module, "start_state", spy)
    train(settings(write_corpus(tmp_path), max_steps=60, batch_size=16, state_reset_prob=0.25), tmp_path / "run")
    assert 0.18 < begun / windows < 0.32


def test_batch_rows_read_in_chunks_learn_the_same_initial_state(tmp_path) -> None:
    corpus, model = write_corpus(tmp_path), {"learned_initial_state": True, "dropout": 0.0}
    for parts in (1, 2):
        run = settings(
            corpus, model, max_steps=12, state_reset_prob=0.3, gradient_accumulation_steps=parts, learning_rate=0.02
        )
        train(run, tmp_path / str(parts), reporter=Listener())
    whole, split = (last_weights(tmp_path / name) for name in ("1", "2"))
    assert whole["layers.0.start.neurons"].any()
    for name, tensor in whole.items():
        torch.testing.assert_close(split[name], tensor, atol=1e-3, rtol=1e-3)


def test_the_start_is_learned_and_used(tmp_path) -> None:
    run = settings(write_corpus(tmp_path), {"learned_initial_state": True}, max_steps=30, **BEGINNERS)
    train(run, tmp_path / "run", reporter=Listener())
    model = load_run(tmp_path / "run").model
    state = model.initial_state(3)
    assert all(bool(tensor.any()) for tensor in (*state.neurons, *state.conv_state))
    ids = torch.zeros(3, 4, dtype=torch.long)
    torch.testing.assert_close(model.advance(ids)[0], model.advance(ids, state)[0])
    rest = state.map(torch.zeros_like)
    assert not torch.allclose(model.advance(ids)[0], model.advance(ids, rest)[0])
