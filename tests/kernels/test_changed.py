"""A fast path never takes the place of something that was changed or is observed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_cases import KINDS, SETS, build
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from ltc_textgen.config import ModelConfig, Solver
from ltc_textgen.generation.native import why_not
from ltc_textgen.kernels import dispatch, head_loss, library
from ltc_textgen.layers import CfC, DiagonalLTC, FullLTC, SynapticLTC
from ltc_textgen.layers.wirings import auto_ncp
from ltc_textgen.model.heads import FullHead
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.shapes import Tensor
from ltc_textgen.solvers import SOLVERS

pytestmark = pytest.mark.skipif(not SETS, reason=f"no CPU kernels here: {library.WHY_NOT}")

IDS = torch.arange(8)[None]
CLASSES: Any = {"diagonal": DiagonalLTC, "full": FullLTC, "synaptic": SynapticLTC}


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of a whole layer for every size."""
    monkeypatch.setattr(dispatch, "PRODUCT", True)
    monkeypatch.setattr(dispatch, "MIN_PRODUCT", 0)


def doubled(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with twice its result, whatever that is."""

    def twice(result: Any) -> Any:
        if callable(result):
            return lambda x: twice(result(x))
        return tuple(map(twice, result)) if isinstance(result, tuple) else 2 * result

    return lambda *args, **kwargs: twice(method(*args, **kwargs))


def network() -> LiquidNetwork:
    torch.manual_seed(0)
    settings = {"input_size": 9, "hidden_size": 8, "coupling": "diagonal", "block": "liquid", "num_layers": 2}
    return LiquidNetwork(ModelConfig.parse(settings)).eval()


def hidden(model: LiquidNetwork) -> Tensor:
    with torch.no_grad():
        return model.lm_head.logits(model.advance(IDS)[0])


def assert_honoured(model: LiquidNetwork, before: Tensor, *, native: bool = True) -> None:
    """What was changed shows in the outputs, and the native decoder does not run."""
    with dispatch.use("reference"):
        expected = hidden(model)
    assert not torch.allclose(expected, before, atol=1e-4)
    torch.testing.assert_close(hidden(model), expected, rtol=1e-4, atol=1e-5)
    assert not native or why_not(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["subclass", "object", "class", "base"])
@pytest.mark.parametrize("name", ["membrane", "step"])
def test_layers(kind: str, where: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, u = build(kind, 6), torch.randn(2, 5, 3)
    before = layer(u)[0]
    if where == "object":
        setattr(layer, name, doubled(getattr(layer, name)))
    elif where == "subclass":
        layer.__class__ = type("Mine", (type(layer),), {name: doubled(getattr(type(layer), name))})
    else:
        owner: Any = type(layer)
        if where == "base":
            owner = next(base for base in owner.__mro__[1:] if name in vars(base))
            if name == "membrane":
                pytest.skip("the class overrides it")
        monkeypatch.setattr(owner, name, doubled(getattr(owner, name)))
    with dispatch.use("reference"):
        expected = layer(u)[0]
    assert not torch.allclose(expected, before, atol=1e-3)
    torch.testing.assert_close(layer(u)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["membrane", "step", "scan", "run", "project", "readout", "capacitance"])
@pytest.mark.parametrize("where", ["object", "class"])
def test_layers_within_a_block(name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before, cell = hidden(model), model.layers[0].cell
    assert not why_not(model)
    if name == "capacitance":
        old = DiagonalLTC.capacitance
        changed: Any = property(lambda self: 3 * old.fget(self))
        owner = DiagonalLTC if where == "class" else type(cell)
        monkeypatch.setattr(owner, name, changed)
    elif where == "object":
        setattr(cell, name, doubled(getattr(cell, name)))
    else:
        monkeypatch.setattr(DiagonalLTC, name, doubled(getattr(DiagonalLTC, name)))
    assert_honoured(model, before)


@pytest.mark.parametrize("part", ["norm", "conv", "cell", "cell.input", "gate", "out", "dropout"])
@pytest.mark.parametrize("how", ["forward", "hook", "class"])
def test_parts_of_a_block(part: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before, module = hidden(model), model.layers[0].get_submodule(part)
    if how == "forward":
        module.forward = doubled(module.forward)  # type: ignore[method-assign]
    elif how == "hook":
        module.register_forward_hook(lambda _, __, out: doubled(lambda: out)())
    else:
        monkeypatch.setattr(type(module), "forward", doubled(type(module).forward))
    if part == "dropout" and how == "class":  # doubles the embedding too, which the norms undo
        assert why_not(model)
    else:
        assert_honoured(model, before)


def test_global_hooks_see_every_part() -> None:
    model, seen = network(), set[str]()
    handle = register_module_forward_hook(lambda module, *_: seen.add(type(module).__name__))
    try:
        hidden(model)
        assert why_not(model)
    finally:
        handle.remove()
    assert {"DiagonalLTC", "CausalConvolution", "Linear", "LockedDropout", "RMSNorm"} <= seen
    assert not why_not(model)


def test_parametrizations() -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    for part in ("gate", "cell.input", "cell"):
        model = network()
        before = hidden(model)
        name = "reversal" if part == "cell" else "weight"
        parametrize.register_parametrization(model.layers[0].get_submodule(part), name, Twice())
        assert_honoured(model, before)


def test_dropout_of_one_part_is_its_own() -> None:
    model = network()
    before = hidden(model)
    model.layers[0].dropout.p = 0.5
    model.layers[0].dropout.train()
    torch.manual_seed(0)
    assert not torch.allclose(hidden(model), before, atol=1e-3)


def test_solvers_replaced_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = hidden(model)
    monkeypatch.setitem(SOLVERS, Solver.semi_implicit, doubled(SOLVERS[Solver.semi_implicit]))  # type: ignore[arg-type]
    assert_honoured(model, before)


@pytest.mark.parametrize("name", ["logits", "loss", "projection"])
def test_the_chunked_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "AT_ONCE", 8)
    head, u, targets = FullHead(3, 7), torch.randn(2, 4, 3), torch.randint(0, 7, (2, 4))
    before = head.total_loss(u, targets)
    target: Any = head.projection if name == "projection" else head
    attribute = "forward" if name == "projection" else name
    setattr(target, attribute, doubled(getattr(target, attribute)))
    assert not torch.allclose(head.total_loss(u, targets), before, rtol=1e-3)


def test_hooks_within_a_closed_form() -> None:
    for layer in (CfC(3, 16, backbone_units=4), CfC(3, 16, wiring=auto_ncp(16, 3, 2))):
        seen: list[str] = []
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda *_, name=name, seen=seen: seen.append(name))
        expected = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        layer(torch.randn(2, 3, 3))
        assert set(seen) == set(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_function_transforms(kind: str) -> None:
    layer, u = build(kind, 5), torch.randn(3, 4, 3)

    def loss(values: Tensor) -> Tensor:
        return layer(values[None])[0].sum()

    each = torch.func.vmap(torch.func.grad(loss))(u)
    torch.testing.assert_close(each[1], torch.func.grad(loss)(u[1]), rtol=1e-4, atol=1e-5)
    assert torch.func.jacrev(loss)(u[0]).shape == u[0].shape
    assert torch.func.hessian(loss)(u[0]).shape == (*u[0].shape, *u[0].shape)


def test_function_transforms_of_a_large_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "AT_ONCE", 8)
    head, u, targets = FullHead(3, 7), torch.randn(4, 3), torch.randint(0, 7, (4,))

    def loss(weights: dict[str, Tensor]) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(head, weights):
            return head.total_loss(u, targets)

    weights = {name: weight.detach() for name, weight in head.named_parameters()}
    found = torch.func.grad(loss)(weights)
    head.total_loss(u, targets).backward()
    torch.testing.assert_close(found["projection.weight"], head.projection.weight.grad)
    torch.func.jvp(loss, (weights,), (weights,))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the exporter itself
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_exported_to_onnx(kind: str) -> None:
    pytest.importorskip("onnxscript")
    layer, u = build(kind, 4).eval(), torch.randn(1, 3, 3)
    assert torch.onnx.export(layer, (u,), dynamo=True, verbose=False) is not None
