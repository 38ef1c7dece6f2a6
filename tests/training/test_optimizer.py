import pytest
import torch
from torch import nn

from ltc_textgen.config import ModelConfig, TrainConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.training.optimizer import make_optimizer, parameter_groups


def network(**settings):
    return LiquidTimeConstantNetwork.from_settings(ModelConfig(input_size=40, hidden_size=16, **settings))


def names(model, weight_decay=0.1):
    decaying, kept = set(), set()
    for group in parameter_groups(model, weight_decay):
        (decaying if group["weight_decay"] else kept).update(group["names"])
    return decaying, kept


def test_in_the_plain_network_only_feature_mixing_matrices_decay():
    decaying, kept = names(network())
    assert decaying == {
        "embed_tokens.weight",
        "layers.0.cell.input.weight",
        "layers.0.cell.recurrent_weight",
        "lm_head.projection.weight",
    }
    assert {"layers.0.cell.log_tau", "layers.0.cell.reversal", "layers.0.cell.input.bias"} <= kept


def test_in_liquid_blocks_physics_norms_convolutions_and_biases_keep_their_values():
    model = network(block="liquid", coupling="diagonal", num_layers=2, tie_embeddings=True)
    decaying, kept = names(model)
    assert decaying == {"embed_tokens.weight"} | {
        f"layers.{i}.{part}.weight" for i in (0, 1) for part in ("cell.input", "gate", "out")
    }
    physics = ("log_capacitance", "log_leak", "reversal", "self_weight")
    assert {f"layers.1.cell.{name}" for name in physics} <= kept
    assert {"layers.0.norm.weight", "layers.0.conv.weight", "layers.0.conv.bias", "norm.weight"} <= kept


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = network(block="liquid", coupling="diagonal", head="adaptive")
    model.layers[0].gate.bias.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_decay_pulls_matrices_and_nothing_else():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.5, learning_rate=0.1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 0.95 if name == "0.weight" else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_the_update_is_fused_and_has_the_configured_betas():
    optimizer = make_optimizer(nn.Linear(2, 2), TrainConfig(beta1=0.8, beta2=0.97, learning_rate=0.5))
    assert all(g["fused"] and g["betas"] == (0.8, 0.97) and g["lr"] == 0.5 for g in optimizer.param_groups)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_no_group_is_empty(decay):
    assert all(group["params"] for group in parameter_groups(nn.LayerNorm(3), decay))
