import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Listener, assert_same_run, last_weights, settings

from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.training import loop as loop_module
from ltc_textgen.training.checkpoint import list_checkpoints, load_torch_random_states
from ltc_textgen.training.loop import train
from ltc_textgen.training.nonfinite import LIMIT, NonFiniteError


def breaking(monkeypatch, damage):
    """Let `damage(step, loss)` replace the loss of a step (numbered from 1)."""
    original = loop_module.build

    def build(*args):
        session = original(*args)
        module = session.module

        class Damaged(torch.nn.Module):
            def forward(self, **given):
                loss, *rest = module(**given)
                return damage(session.progress.step + 1, loss), *rest

        session.module = Damaged()
        return session

    monkeypatch.setattr(loop_module, "build", build)


class EndlessGradient(torch.autograd.Function):
    """A finite loss with a gradient that is not."""

    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize(
    "damage",
    [lambda loss: loss * float("nan"), lambda loss: loss + float("inf"), EndlessGradient.apply],
    ids=["nan loss", "infinite loss", "infinite gradient"],
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(corpus, tmp_path, monkeypatch, damage):
    run = settings(corpus, {"dropout": 0.0}, max_steps=6, save_steps=1, save_total_limit=10)
    breaking(monkeypatch, lambda step, loss: damage(loss) if step in (3, 4) else loss)
    listener = Listener()
    result = train(run, tmp_path / "run", reporter=listener)
    assert (result.step, result.skipped) == (6, 2)
    weights = {
        int(path.name.removeprefix("step-")): load_file(path / "model.safetensors")["lm_head.projection.weight"]
        for path in list_checkpoints(tmp_path / "run")
    }
    assert torch.equal(weights[2], weights[3])
    assert torch.equal(weights[3], weights[4])
    assert not torch.equal(weights[4], weights[5])
    assert all(tensor.isfinite().all() for tensor in last_weights(tmp_path / "run").values())


def test_nonfinite_steps_are_reported(corpus, tmp_path, monkeypatch):
    breaking(monkeypatch, lambda step, loss: loss * float("nan") if step == 3 else loss)
    listener = Listener()
    assert train(settings(corpus, max_steps=4), tmp_path / "run", reporter=listener).skipped == 1
    assert [note.startswith("step 3 ") for note in listener.notes if note.startswith("step ")] == [True]


def test_too_many_in_a_row_end_the_run_and_leave_what_reproduces_the_step(corpus, tmp_path, monkeypatch):
    run = settings(corpus, {"dropout": 0.0}, max_steps=100, save_steps=5, eval_steps=100)
    inputs = []

    def damage(step, loss):
        inputs.append(step)
        return loss * float("nan") if step >= 13 else loss

    breaking(monkeypatch, damage)
    with pytest.raises(NonFiniteError, match=f"13 to {12 + LIMIT}") as caught:
        train(run, tmp_path / "run", reporter=Listener())
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert all(tensor.isfinite().all() for tensor in last_weights(tmp_path / "run").values())
    assert not (tmp_path / "run" / "model.safetensors").exists()

    dump = tmp_path / "run" / "nonfinite" / "process-0"
    record = json.loads((dump / "step.json").read_text())
    assert record["step"] == 12 + LIMIT
    assert "lm_head.projection.weight" in record["gradients_not_finite"]
    assert reproduced(run, dump).isfinite(), "here the damage came from the test"


def reproduced(run, dump):
    """The loss of the step that a dump holds."""
    from ltc_textgen.data.token_cache import prepare

    window = load_file(dump / "window.safetensors")
    model = LiquidTimeConstantNetwork.from_settings(run.model_config_for(prepare(run.data).tokenizer.vocab_size))
    model.load_state_dict(load_file(dump / "weights.safetensors"))
    state = {name.removeprefix("state."): t for name, t in window.items() if name.startswith("state.")}
    load_torch_random_states(load_file(dump / "random.safetensors"), torch.device("cpu"))
    return model.train()(window["inputs"], shift_labels=window["targets"], state=LiquidState.from_tensors(state)).loss


def test_the_dump_reproduces_dropout_and_restarts_too(corpus, tmp_path, monkeypatch):
    run, losses = settings(corpus, {"dropout": 0.3}, max_steps=100, eval_steps=100, state_reset_prob=0.3), []

    def damage(step, loss):
        losses.append(loss.detach().clone())
        return loss * float("nan") if step >= 3 else loss

    breaking(monkeypatch, damage)
    with pytest.raises(NonFiniteError):
        train(run, tmp_path / "run", reporter=Listener())
    torch.testing.assert_close(reproduced(run, tmp_path / "run" / "nonfinite" / "process-0"), losses[-1])


def test_a_dump_that_cannot_be_written_does_not_hide_why_the_run_ends(corpus, tmp_path, monkeypatch):
    breaking(monkeypatch, lambda step, loss: loss * float("nan"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "nonfinite").touch()
    with pytest.raises(NonFiniteError, match=r"1 to 10.*nonfinite"):
        train(settings(corpus, max_steps=100), tmp_path / "run", reporter=Listener())


@pytest.mark.slow
def test_the_count_in_a_row_resets_after_a_finite_step_and_survives_resuming(corpus, tmp_path, monkeypatch):
    run = settings(corpus, max_steps=60, save_steps=5, eval_steps=100)
    breaking(monkeypatch, lambda step, loss: loss * float("nan") if step % LIMIT else loss)
    stop = Listener(lambda pace: os.kill(os.getpid(), signal.SIGTERM) if pace.step == 15 else None)
    train(run, tmp_path / "run", reporter=stop)
    result = train(run, tmp_path / "run", resume=True, reporter=Listener())
    assert result.skipped == 60 - 6


def test_stopped_after_a_skipped_step_and_resumed_it_is_the_same_run(corpus, tmp_path, monkeypatch):
    """The states are reset then, and a learned initial state still gets its gradient."""
    run = settings(corpus, {"learned_initial_state": True}, max_steps=12, eval_steps=100)
    breaking(monkeypatch, lambda step, loss: loss * float("nan") if step == 5 else loss)
    train(run, tmp_path / "whole", reporter=Listener())
    stop = Listener(lambda pace: os.kill(os.getpid(), signal.SIGTERM) if pace.step == 5 else None)
    assert train(run, tmp_path / "parts", reporter=stop).step == 5
    train(run, tmp_path / "parts", resume=True, reporter=Listener())
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_validation_that_is_not_finite_does_not_replace_the_best_weights(corpus, tmp_path, monkeypatch):
    from ltc_textgen.training import validation

    original, calls = validation.score_tokens, []

    def score(*args, **kwargs):
        calls.append(1)
        nll, tokens = original(*args, **kwargs)
        return (float("nan") if len(calls) == 2 else nll), tokens

    monkeypatch.setattr(validation, "score_tokens", score)
    listener = Listener()
    result = train(settings(corpus, max_steps=20, eval_steps=10), tmp_path / "run", reporter=listener)
    assert (result.best_step, result.val_loss) == (10, None)
    assert any("step 20" in note for note in listener.notes)
