"""What public scripts expect of a causal language model of transformers."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.utils._pytree import tree_map
from transformers import AutoConfig, Trainer, TrainingArguments, default_data_collator

from ltc_textgen import LiquidTimeConstantNetwork
from ltc_textgen.errors import UsageError
from ltc_textgen.model.state import LiquidState

V = 20
DEEP = {"block": "liquid", "coupling": "diagonal", "num_layers": 2, "steps": 1, "step_size": 1.0}


@pytest.fixture
def model() -> LiquidTimeConstantNetwork:
    torch.manual_seed(0)
    return LiquidTimeConstantNetwork(V, 8, V, **DEEP).eval()


def ids(rows: int = 2, tokens: int = 7) -> torch.Tensor:
    return torch.randint(0, V, (rows, tokens), generator=torch.Generator().manual_seed(1))


def test_the_trainer_reports_a_loss_of_evaluation(model: LiquidTimeConstantNetwork, tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in ids(6)]
    options = TrainingArguments(str(tmp_path), report_to=[], per_device_eval_batch_size=2, use_cpu=True)
    trainer = Trainer(model, options, eval_dataset=rows, data_collator=default_data_collator)
    assert "shift_labels" not in inspect.signature(model.forward).parameters
    assert trainer.evaluate()["eval_loss"] == pytest.approx(model(ids(6), labels=ids(6)).loss.item(), rel=1e-4)


def test_the_last_hidden_state_is_what_the_output_layer_reads(model: LiquidTimeConstantNetwork) -> None:
    output = model(ids(), output_hidden_states=True)
    assert len(output.hidden_states) == 3, "the embedding and two layers"
    assert output.hidden_states[-1] is output.last_hidden_state
    assert torch.equal(model.lm_head.logits(output.last_hidden_state), output.logits)
    assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(ids()))
    assert torch.equal(model.base_model(ids()).last_hidden_state, output.last_hidden_state)


def test_embeddings_stand_in_for_ids(model: LiquidTimeConstantNetwork) -> None:
    embeds = model.get_input_embeddings()(ids()).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits
    assert torch.equal(logits, model(ids()).logits)
    (gradient,) = torch.autograd.grad(logits[:, -1].sum(), embeds)
    assert gradient.abs().sum() > 0
    with pytest.raises(UsageError):
        model(ids(), inputs_embeds=embeds)
    with pytest.raises(UsageError):
        model()


def test_unknown_arguments_are_rejected(model: LiquidTimeConstantNetwork) -> None:
    with pytest.raises(UsageError, match="label_smoothing"):
        model(ids(), label_smoothing=0.1)
    assert model(ids(), position_ids=torch.arange(7)).logits is not None


def test_a_state_is_a_pytree(model: LiquidTimeConstantNetwork) -> None:
    state = model.advance(ids())[1].detach()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def last_logits(neurons: torch.Tensor) -> torch.Tensor:
        before = LiquidState((neurons, state.neurons[1]), state.conv_state)
        return functional_call(model, weights, (ids()[:, :1],), {"state": before, "use_cache": False}).logits[:, -1]

    assert jacrev(last_logits)(state.neurons[0]).shape == (2, V, 2, 16)
    doubled = vmap(lambda each: tree_map(lambda tensor: 2 * tensor, each))(state)
    assert torch.equal(doubled.neurons[0], 2 * state.neurons[0])


class Step(nn.Module):
    def __init__(self, network: LiquidTimeConstantNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: torch.Tensor, state: LiquidState) -> tuple[torch.Tensor, LiquidState]:
        hidden, after = self.network.advance(tokens, state)
        return self.network.lm_head.logits(hidden), after


@pytest.mark.slow
def test_a_network_with_its_state_is_exported(model: LiquidTimeConstantNetwork) -> None:
    state = model.advance(ids())[1].detach()
    exported = torch.export.export(Step(model), (ids(), state), strict=False).module()
    for ours, theirs in zip(exported(ids(), state)[1].neurons, model.advance(ids(), state)[1].neurons, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_time_constants_of_a_padded_batch_are_those_of_its_texts(model: LiquidTimeConstantNetwork, side: str) -> None:
    tokens = ids(1)
    alone = model.time_constants(tokens)
    padding = torch.zeros(1, 3, dtype=torch.int64)
    padded = torch.cat([padding, tokens] if side == "left" else [tokens, padding], dim=1)
    mask = torch.cat([padding, tokens * 0 + 1] if side == "left" else [tokens * 0 + 1, padding], dim=1).bool()
    for ours, theirs in zip(model.time_constants(padded, mask=mask), alone, strict=True):
        torch.testing.assert_close(ours[mask][None], theirs)
        assert ours[~mask].isnan().all()


def test_a_run_directory_has_a_configuration_without_the_package(run: Path) -> None:
    config = AutoConfig.from_pretrained(run, trust_remote_code=True)
    assert config.model_type == "ltc"
    assert config.architectures == [LiquidTimeConstantNetwork.__name__]  # TRL loads a path by it
