"""The liquid block as one node against the same block out of PyTorch's operations, in float64."""

import copy
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltc_textgen.config import ModelConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import dispatch
from ltc_textgen.kernels.library import LIBRARY
from ltc_textgen.kernels.liquid_block import BlockMethod, _forward
from ltc_textgen.kernels.matmul import Linear
from ltc_textgen.model.blocks import CausalConvolution, LiquidBlock

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="built without a compiler")


def block(width: int = 20, **more: Any) -> LiquidBlock:
    settings = {"coupling": "diagonal", "block": "liquid", "hidden_size": width, "expansion": 1.5} | more
    made = LiquidBlock(ModelConfig.parse({"input_size": 8, **settings}))
    with torch.no_grad():
        for parameter in made.parameters():  # nothing at its start, where r = 0 and biases = 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def inputs(of: LiquidBlock, batch: int, tokens: int) -> list[Tensor]:
    neurons, columns = of.initial_state(batch)
    assert columns is not None
    shapes = (batch, tokens, of.conv.width), neurons.shape, columns.shape
    return [*(torch.randn(shape) for shape in shapes), 2 * torch.rand(batch, tokens)]


def results(of: nn.Module, given: list[Tensor], pulls: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, and the gradients of everything."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    of.zero_grad()
    out, (neurons, columns) = of(leaves[0], (leaves[1], leaves[2]), leaves[3], None, None)
    outputs = (out, neurons, columns)
    torch.autograd.backward(outputs, pulls)
    found = dict(zip(("out", "neurons", "columns"), (o.detach() for o in outputs), strict=True))
    found |= {f"gradient {i}": leaf.grad for i, leaf in enumerate(leaves) if leaf.grad is not None}
    return found | {f"gradient of {n}": p.grad for n, p in of.named_parameters() if p.grad is not None}


def fused(of: LiquidBlock) -> bool:
    return of._kernel_weights(torch.zeros(1, 1, of.out.out_features)) is not None


@pytest.mark.parametrize(
    ("width", "batch", "tokens", "more"),
    [
        (128, 12, 64, {"steps": 1, "step_size": 1.0}),
        (20, 3, 5, {"steps": 2, "solver": "exponential"}),
        (33, 2, 2, {"solver": "runge_kutta"}),  # fewer tokens than the convolution has columns
        (16, 2, 1, {"conv_width": 2, "adaptive": False}),
        (16, 1, 9, {"conv_width": 1, "solver": "explicit", "contractive": False}),
        (16, 2, 7, {"contractive": True}),
    ],
)
def test_fused_block_is_the_block(width: int, batch: int, tokens: int, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours = block(width, **more)
    assert fused(ours)
    given = inputs(ours, batch, tokens)
    pulls = [torch.randn_like(tensor) for tensor in given[:3]]
    double = [tensor.double() for tensor in given]
    found = results(ours, given, pulls)
    expected = results(copy.deepcopy(ours).double(), double, [pull.double() for pull in pulls])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.numel():
            error = (found[name].double() - tensor).norm() / (tensor.norm() + 1e-9)
            assert error < (1e-5 if "gradient" not in name else 1e-4), name


def test_only_some_outputs_have_a_gradient() -> None:
    torch.manual_seed(1)
    ours = block()
    given = inputs(ours, 2, 6)
    for chosen in range(3):
        gradients = []
        for choice in ("auto", "reference"):
            with dispatch.use(choice):  # type: ignore[arg-type]
                out, (neurons, columns) = ours(given[0].requires_grad_(), (given[1], given[2]), given[3], None, None)
                (gradient,) = torch.autograd.grad((out, neurons, columns)[chosen].square().sum(), given[0])
            gradients.append(gradient)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_gradients_flow_from_chunk_to_chunk() -> None:
    torch.manual_seed(2)
    ours = block()
    u, neurons, columns, elapsed = inputs(ours, 2, 8)
    u.requires_grad_()
    whole, _ = ours(u, (neurons, columns), elapsed, None, None)
    first, state = ours(u[:, :3], (neurons, columns), elapsed[:, :3], None, None)
    second, _ = ours(u[:, 3:], state, elapsed[:, 3:], None, None)
    pull = torch.randn_like(whole)
    (expected,) = torch.autograd.grad(whole, u, pull)
    (found,) = torch.autograd.grad(torch.cat([first, second], 1), u, pull)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_others_who_look_inside_get_the_plain_operations() -> None:
    ours = block()
    assert fused(ours)
    handle = ours.gate.register_forward_hook(lambda *_: None)
    assert not fused(ours)
    handle.remove()
    assert fused(ours)
    handle = ours.cell.register_full_backward_pre_hook(lambda *_: None)
    assert not fused(ours)
    handle.remove()
    ours.norm.forward = ours.norm.forward  # as accelerate does where it fetches the weights for each call
    assert not fused(ours)
    del ours.norm.forward
    for other in (ours.out.weight.bfloat16(), ours.out.weight.to("meta")):
        ours.out.weight = nn.Parameter(other)
        assert not fused(ours)
    ours.out = Linear(30, 20, bias=False)
    assert fused(ours)
    ours.conv = nn.Sequential(ours.conv)  # type: ignore[assignment]
    assert not fused(ours)
    ours.conv = CausalConvolution(20, 4)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not fused(ours)
    with dispatch.use("reference"):
        assert not fused(ours)
    assert ours._kernel_weights(torch.zeros(1, 1, 20, dtype=torch.float64)) is None


def test_states_of_another_precision_are_taken_as_they_are_elsewhere() -> None:
    torch.manual_seed(6)
    ours = block()
    u, neurons, columns, elapsed = inputs(ours, 2, 4)
    given = u, (neurons.double(), columns.bfloat16()), elapsed
    found, (state, after) = ours(*given, None, None)
    assert (state.dtype, after.dtype) == (torch.float32, torch.float32)
    with dispatch.use("reference"):
        torch.testing.assert_close(found, ours(*given, None, None)[0], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_an_error_and_no_crash() -> None:
    ours = block()
    u, neurons, columns, elapsed = inputs(ours, 2, 4)

    def run(*given: Tensor) -> None:  # past the annotations, which are checked in tests alone
        _forward(BlockMethod(1e-6, ours.cell.method, False), *given, None, *ours.weights())

    run(u, columns, neurons, elapsed)
    for message, given in (
        (r"u: expected \(2, 4, 20\)", (u[:, :, :19], columns, neurons, elapsed)),
        ("u: expected .* got .*float64", (u.double(), columns, neurons, elapsed)),
        (r"conv_state: expected \(2, 3, 20\)", (u, columns[:1], neurons, elapsed)),
        ("conv_state: expected .* on meta", (u, columns.to("meta"), neurons, elapsed)),
        (r"drive: expected \(2, 4, 58\)", (u, columns, neurons[:, :29], elapsed)),
        (r"u: expected \(2, 3, 20\)", (u, columns, neurons, elapsed[:, :3])),
        ("elapsed: every value must be", (u, columns, neurons, -elapsed)),
    ):
        with pytest.raises(UsageError, match=message):
            run(*given)
    ours.gate.weight = nn.Parameter(torch.zeros(29, 20))
    with pytest.raises(UsageError, match=r"gate: expected \(30, 20\)"):
        run(u, columns, neurons, elapsed)


def test_some_weights_frozen_and_inputs_with_gaps() -> None:
    torch.manual_seed(7)
    ours = block()
    u, neurons, columns, elapsed = inputs(ours, 2, 6)
    given = [torch.stack([t, t], -1)[..., 0] for t in (u, neurons, columns, elapsed)]
    assert not any(tensor.is_contiguous() for tensor in given)
    pulls = [torch.randn_like(tensor) for tensor in (u, neurons, columns)]
    whole = results(ours, [u, neurons, columns, elapsed], pulls)
    for name in ("norm.weight", "conv.weight", "cell.input.weight", "gate.bias", "out.weight"):
        ours.get_parameter(name).requires_grad_(False)
        ours.get_parameter(name).grad = None
    found = results(ours, given, pulls)
    assert len(found) == len(whole) - 5
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())


def test_computed_again_on_the_way_back_it_is_the_same() -> None:
    torch.manual_seed(8)
    ours = block(dropout=0.5).train()
    given = inputs(ours, 2, 6)
    pulls = [torch.randn_like(tensor) for tensor in given[:3]]
    found = []
    for again in (False, True):
        torch.manual_seed(9)
        run = partial(checkpoint, ours, use_reentrant=False) if again else ours
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        out, (neurons, columns) = run(leaves[0], (leaves[1], leaves[2]), leaves[3], None, None)
        found.append(torch.autograd.grad((out, neurons, columns), [*leaves, *ours.parameters()], pulls))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_gradient_leaves_no_graph() -> None:
    ours = block()
    u, neurons, columns, elapsed = inputs(ours, 2, 4)
    with torch.no_grad():
        out, _ = ours(u, (neurons, columns), elapsed, None, None)
    assert out.grad_fn is None


def test_same_bits_every_time() -> None:
    torch.manual_seed(3)
    ours = block(64)
    given = inputs(ours, 5, 33)
    pulls = [torch.randn_like(tensor) for tensor in given[:3]]
    first, second = results(ours, given, pulls), results(ours, given, pulls)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_under_autocast_only_products_are_bfloat16() -> None:
    torch.manual_seed(4)
    ours = block(64)
    given = inputs(ours, 3, 8)
    pulls = [torch.randn_like(tensor) for tensor in given[:3]]
    exact = results(ours, given, pulls)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused(ours)
        found = results(ours, given, pulls)
    assert not torch.equal(found["out"], exact["out"])
    for name, tensor in exact.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - tensor).norm() / tensor.norm() < 0.03, name


def test_dropout_leaves_out_whole_features_and_is_the_same_fused_or_not() -> None:
    ours = block(32, dropout=0.5).train()
    u, neurons, columns, elapsed = inputs(ours, 3, 6)
    outs = []
    for choice in ("auto", "reference"):
        torch.manual_seed(5)
        with dispatch.use(choice):  # type: ignore[arg-type]
            out, _ = ours(u, (neurons, columns), elapsed, None, None)
        outs.append(out)
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    kept = (outs[0] != u).any(1)
    assert torch.equal(kept, (outs[0] != u).all(1))
    assert 0.3 < kept.float().mean() < 0.7
    whole, _ = ours.eval()(u, (neurons, columns), elapsed, None, None)
    scaled = u + 2 * (whole - u)
    torch.testing.assert_close(outs[0], torch.where(kept[:, None], scaled, u), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_block_compiles_to_one_graph() -> None:
    """In a process without the run-time checks of annotations, which a compiler cannot read."""
    program = """
import sys, torch
sys.path.insert(0, "tests/kernels")
from test_liquid_block import block, inputs
of = block(20)
given = inputs(of, 2, 5)
call = lambda run: run(given[0].clone().requires_grad_(), tuple(given[1:3]), given[3], None, None)
for out in (call(torch.compile(of, fullgraph=True, backend="aot_eager")), call(of)):
    of.zero_grad()
    (out[0].sum() + out[1][0].sum()).backward()
    found = [out[0].detach(), *(p.grad.clone() for p in of.parameters() if p.grad is not None)]
    if "first" not in globals():
        first = found
assert len(found) == len(first) > 9
for one, other in zip(first, found):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
