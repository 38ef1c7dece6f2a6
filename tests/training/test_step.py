import math

import pytest
import torch
from training_runs import Listener, last_weights, settings

from ltc_textgen.training import session as session_module
from ltc_textgen.training import step as step_module
from ltc_textgen.training.loop import train


def test_targets_are_the_next_tokens_so_that_copying_the_input_scores_badly(corpus, tmp_path):
    """A model that puts all its belief on the token it has just read, in the place of a trained one."""
    seen = []

    class Copy(torch.nn.Module):
        def forward(self, **given):
            seen.append((given["input_ids"], given["shift_labels"]))
            return model(**given)

    model = None
    original = session_module.build

    def build(*args):
        nonlocal model
        session = original(*args)
        model, session.module = session.module, Copy()
        return session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltc_textgen.training.loop.build", build)
        train(settings(corpus, max_steps=2), tmp_path / "run", reporter=Listener())
    inputs, targets = seen[0]
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(seen[1][0][:, 0], targets[:, -1]), "the next window starts where this one ended"
    vocabulary = model.settings.vocabulary
    copying = 20.0 * torch.nn.functional.one_hot(inputs, vocabulary).float()
    copied = torch.nn.functional.cross_entropy(copying.flatten(0, 1), targets.flatten())
    knowing = 20.0 * torch.nn.functional.one_hot(targets, vocabulary).float()
    known = torch.nn.functional.cross_entropy(knowing.flatten(0, 1), targets.flatten())
    assert copied > 2 * math.log(vocabulary) > math.log(vocabulary) > known


def test_the_state_is_carried_over_windows_without_gradient_and_reset_with_the_epoch(corpus, tmp_path):
    run = settings(corpus, max_steps=1, batch_size=1, sequence_length=2000)
    states = []
    original = step_module.start_state

    def spy(session, reset):
        state = original(session, reset)
        states.append((bool(reset.all()), state, session.state))
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "start_state", spy)
        steps = 9
        train(
            run.model_copy(update={"train": run.train.model_copy(update={"max_steps": steps})}),
            tmp_path / "r",
            reporter=Listener(),
        )
    resets = [reset for reset, _, _ in states]
    assert sum(resets) == 2, "the epoch has fewer windows than the run has steps"
    for reset, state, after in states:
        assert not state.neurons[0].requires_grad
        assert bool((state.neurons[0] == 0).all()) is reset
        if not reset:
            assert torch.equal(state.neurons[0], after.neurons[0])


def test_a_batch_row_that_is_reset_does_not_change_the_others(corpus, tmp_path):
    mixed = []
    original = step_module.start_state

    def spy(session, reset):
        if session.state is not None:
            half = torch.tensor([True, False, True, False])
            mixed.append((original(session, half), session.state))
        return original(session, reset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "start_state", spy)
        train(settings(corpus, max_steps=2), tmp_path / "run", reporter=Listener())
    state, carried = mixed[0]
    for now, before in zip((*state.neurons, *state.conv_state), (*carried.neurons, *carried.conv_state), strict=True):
        assert torch.equal(now[[1, 3]], before[[1, 3]])
        assert bool((now[[0, 2]] == 0).all())
        assert bool((before[[0, 2]] != 0).any())


def test_clipping_bounds_the_step_of_plain_descent():
    model = torch.nn.Linear(3, 1)
    parameters = list(model.parameters())
    model.weight.grad, model.bias.grad = torch.full((1, 3), 30.0), torch.zeros(1)
    norm = step_module.clip_gradients(parameters, 1.0)
    assert norm == pytest.approx(30 * 3**0.5)
    assert model.weight.grad.norm() == pytest.approx(1.0, rel=1e-4)
    model.weight.grad = torch.full((1, 3), 30.0)
    assert step_module.clip_gradients(parameters, 0.0) == pytest.approx(30 * 3**0.5)
    assert model.weight.grad[0, 0] == 30.0


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 3, 99])
def test_batch_rows_read_in_chunks_give_the_same_run(corpus, tmp_path, parts):
    whole, split = (
        settings(
            corpus, {"dropout": 0.0}, max_steps=12, batch_size=5, gradient_accumulation_steps=n, learning_rate=0.02
        )
        for n in (1, parts)
    )
    calls = []
    original = session_module.build

    def build(*args):
        session = original(*args)
        session.module.register_forward_pre_hook(lambda *_, **__: calls.append(1), with_kwargs=True)
        return session

    one = train(whole, tmp_path / "whole", reporter=Listener())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltc_textgen.training.loop.build", build)
        many = train(split, tmp_path / "split", reporter=Listener())
    assert len(calls) == 12 * min(parts, 5)
    assert many.best_val_loss == pytest.approx(one.best_val_loss, abs=1e-4)
    for name, tensor in last_weights(tmp_path / "whole").items():
        torch.testing.assert_close(last_weights(tmp_path / "split")[name], tensor, atol=1e-3, rtol=1e-3)
