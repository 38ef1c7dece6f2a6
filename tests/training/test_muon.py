"""Muon: orthogonal steps for the matrices of the layers, AdamW's for the rest."""

import pytest
import torch
from torch import nn

from ltc_textgen.config import TrainConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.training.optimizer import MOMENTUM, Muon, make_optimizer, orthogonalised

DEEP = {"coupling": "diagonal", "block": "liquid", "num_layers": 2, "steps": 1, "step_size": 1.0}


def test_singular_values_become_about_one() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 48, 16) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.7
    assert values.max() < 1.3
    # The directions stay: left and right singular vectors are those of the input.
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    core = left.mT @ orthogonalised(matrices) @ right.mT
    assert (core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))).abs().max() < 0.05


def test_small_singular_values_too() -> None:
    spread = torch.logspace(-1.7, 0, 8)  # of which the largest is half of the norm or more
    values = torch.linalg.svdvals(orthogonalised(torch.diag(spread)[None]))
    assert values.min() > 0.7
    assert values.max() < 1.3


def test_nothing_comes_of_nothing() -> None:
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 2)), torch.zeros(1, 4, 2))


def test_a_closure_makes_the_gradients() -> None:
    torch.manual_seed(3)
    given, target = torch.randn(6, 4), torch.randn(6, 4)
    matrices = [nn.Parameter(given.clone()) for _ in range(2)]
    for matrix, by_closure in zip(matrices, (True, False), strict=True):
        optimizer = Muon([{"params": [matrix], "orthogonal": True, "stacks": [1]}], lr=0.1, fused=True)

        def closure(matrix: nn.Parameter = matrix) -> torch.Tensor:
            matrix.grad = None
            loss = (matrix - target).square().sum()
            loss.backward()
            return loss.detach()

        if by_closure:
            matrix.grad = torch.full_like(matrix, 100.0)
            assert optimizer.step(closure) == (given - target).square().sum()
        else:
            closure()
            optimizer.step()
    assert torch.equal(*matrices)
    assert not torch.equal(matrices[0], given)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_a_step_is_orthogonal_and_decays(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrix = nn.Parameter(torch.randn(shape))
    before = matrix.detach().clone()
    group = {"params": [matrix], "orthogonal": True, "stacks": [1], "weight_decay": 0.5}
    optimizer = Muon([group], lr=0.1, fused=True)
    matrix.grad = gradient = torch.randn(shape)
    optimizer.step()
    assert matrix.grad is gradient
    step = (before * (1 - 0.1 * 0.5) - matrix.detach()) / 0.1
    values = torch.linalg.svdvals(step) / (max(shape) / min(shape)) ** 0.5
    assert values.min() > 0.7
    assert values.max() < 1.3
    assert (step * gradient).sum() > 0
    torch.testing.assert_close(optimizer.state[matrix]["momentum"], (1 - MOMENTUM) * gradient)


def test_a_stack_moves_as_its_matrices_do() -> None:
    torch.manual_seed(2)
    whole, gradient = torch.randn(10, 4), torch.randn(10, 4)
    stack = nn.Parameter(whole.clone())
    parts = [nn.Parameter(part.clone()) for part in whole.chunk(2)]
    stack.grad = gradient.clone()
    for part, its in zip(parts, gradient.chunk(2), strict=True):
        part.grad = its.clone()
    for params, stacks in (([stack], [2]), (parts, [1, 1])):
        Muon([{"params": params, "orthogonal": True, "stacks": stacks}], lr=0.1, fused=True).step()
    torch.testing.assert_close(stack.detach(), torch.cat([p.detach() for p in parts]), rtol=0, atol=1e-6)


def test_matrices_of_the_layers_are_muons_and_the_rest_is_adams() -> None:
    network = LiquidTimeConstantNetwork(11, 8, **DEEP, conv_width=2)
    optimizer = make_optimizer(network, TrainConfig(optimizer="muon", learning_rate=1e-3, muon_learning_rate=0.5))
    groups = {name: group for group in optimizer.param_groups for name in group["names"]}
    assert set(groups) == {name for name, _ in network.named_parameters()}
    muons = {name for name, group in groups.items() if group.get("orthogonal")}
    inside = ("cell.input.weight", "gate.weight", "out.weight")
    assert muons == {f"layers.{i}.{name}" for i in range(2) for name in inside}
    assert {group["peak"] for name, group in groups.items() if name in muons} == {0.5}
    assert {group["peak"] for name, group in groups.items() if name not in muons} == {1e-3}
    network(torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)).loss.backward()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer.step()
    kinds = {name: set(optimizer.state[p]) for name, p in network.named_parameters()}
    assert all((kinds[name] == {"momentum"}) is (name in muons) for name in kinds)
    assert all(not torch.equal(p, before[name]) for name, p in network.named_parameters() if name in muons)


def test_full_coupling_has_its_recurrent_matrix_moved() -> None:
    optimizer = make_optimizer(LiquidTimeConstantNetwork(11, 8), TrainConfig(optimizer="muon"))
    muons = [name for group in optimizer.param_groups if group.get("orthogonal") for name in group["names"]]
    assert "layers.0.cell.recurrent_weight" in muons


def test_rejected_where_it_cannot_work() -> None:
    network = LiquidTimeConstantNetwork(11, 8, coupling="synaptic")
    with pytest.raises(UsageError, match="muon"):
        make_optimizer(network, TrainConfig(optimizer="muon"))
    with pytest.raises(UsageError, match="fp16"):
        make_optimizer(LiquidTimeConstantNetwork(11, 8), TrainConfig(optimizer="muon", mixed_precision="fp16"))
