"""Second derivatives through every kernel are those of the PyTorch reference in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_cases import SETS, build
from torch.utils._python_dispatch import TorchDispatchMode

from ltc_textgen.config import ModelConfig
from ltc_textgen.kernels import dispatch, head_loss, library
from ltc_textgen.kernels.matmul import linear
from ltc_textgen.layers import CfC
from ltc_textgen.model.blocks import LiquidBlock
from ltc_textgen.model.heads import FullHead
from ltc_textgen.shapes import Tensor

pytestmark = pytest.mark.skipif(not SETS, reason=f"no CPU kernels here: {library.WHY_NOT}")


class Watching(TorchDispatchMode):
    """Sees every operation, so that kernels run as registered operators."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


Outputs = Callable[[torch.nn.Module, Tensor], Tensor]


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our product, the kernel of a whole layer and the chunked loss for every size."""
    monkeypatch.setattr(dispatch, "PRODUCT", True)
    monkeypatch.setattr(dispatch, "MIN_PRODUCT", 0)
    monkeypatch.setattr(head_loss, "AT_ONCE", 8)


def penalties(module: torch.nn.Module, outputs: Outputs, u: Tensor, power: int) -> list[Tensor]:
    """Gradients, for all parameters and the input, of the squared gradient of a loss: linear in the outputs, or not."""
    module.zero_grad()
    u = u.detach().requires_grad_()
    loss = outputs(module, u).pow(power).sum()
    leaves = [u, *(p for p in module.parameters() if p.requires_grad)]
    first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    squares = sum((g**2).sum() for g in first if g is not None)
    second = torch.autograd.grad(squares, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(second, leaves, strict=True)]


def run_layer(layer: torch.nn.Module, u: Tensor) -> Tensor:
    return layer(u, elapsed=torch.tensor([[1.0, 0.0, 0.5, 2.0]]).to(u.dtype).expand(u.shape[:2]))[0]


def run_block(block: torch.nn.Module, u: Tensor) -> Tensor:
    assert isinstance(block, LiquidBlock)
    neurons, columns = block.initial_state(len(u))
    out, (last, after) = block(u, (neurons, columns), torch.ones(u.shape[:2], dtype=u.dtype), None, None)
    assert after is not None
    return torch.cat([out.flatten(), last.flatten(), after.flatten()])


def run_head(head: torch.nn.Module, u: Tensor) -> Tensor:
    assert isinstance(head, FullHead)
    return head.total_loss(u, torch.tensor([[0, 1, -100, 2], [3, 4, 5, 6]]))[None]


def make(kind: str) -> tuple[torch.nn.Module, Outputs]:
    if kind == "block":
        settings = {"input_size": 9, "coupling": "diagonal", "block": "liquid", "hidden_size": 3, "expansion": 2.0}
        return LiquidBlock(ModelConfig.parse(settings)), run_block
    if kind == "head":
        return FullHead(3, 7), run_head
    if kind == "linear":
        return torch.nn.Linear(3, 5), lambda layer, u: linear(u, layer.weight, layer.bias)  # type: ignore[arg-type]
    if kind == "cfc":
        return CfC(3, 6, backbone_units=4), run_layer
    return build(kind, 6, steps=2), run_layer


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("kind", ["diagonal", "full", "synaptic", "cfc", "block", "head", "linear"])
@pytest.mark.parametrize("power", [1, 2])
def test_gradient_penalties(kind: str, power: int) -> None:
    torch.manual_seed(0)
    (module, outputs), u = make(kind), torch.randn(2, 4, 3)
    found = penalties(module, outputs, u, power)
    with Watching():
        counted = penalties(module, outputs, u, power)
    with dispatch.use("reference"):
        expected = penalties(module.double(), outputs, u.double(), power)
    assert any(bool(tensor.any()) for tensor in expected)
    for values in (found, counted):
        for one, other in zip(values, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["diagonal", "full", "synaptic"])
def test_hessian_of_a_linear_loss(kind: str) -> None:
    torch.manual_seed(1)
    layer, u = build(kind, 4), torch.randn(1, 3, 3)

    def loss(values: Tensor) -> Tensor:
        return layer(values)[0].sum()

    found = torch.autograd.functional.hessian(loss, u)
    with dispatch.use("reference"):
        expected = torch.autograd.functional.hessian(loss, u)
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_newton_over_time() -> None:
    torch.manual_seed(2)
    layer, u = build("diagonal", 4).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    results: list[list[Any]] = []
    for choice in ("parallel", "reference"):
        with dispatch.use(choice):
            results.append(penalties(layer, run_layer, u, 1))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_an_input_that_another_one_depends_on_counts_once() -> None:
    torch.manual_seed(3)
    layer = build("diagonal", 4)
    drive = torch.randn(2, 3, 8, requires_grad=True)
    found = []
    for choice in ("auto", "reference"):
        with dispatch.use(choice):
            x = 2 * drive[:, 0, :4]
            states, _ = layer.scan(drive, x, torch.ones(2, 3))
            (first,) = torch.autograd.grad(states.sum(), drive, create_graph=True)
            (second,) = torch.autograd.grad((first**2).sum(), drive)
        found.append((first.detach(), second))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
