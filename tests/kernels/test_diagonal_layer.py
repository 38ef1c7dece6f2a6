"""A diagonal layer in one pass gives what projection and scan give one after the other, and runs where it may."""

import copy
import itertools

import pytest
import torch
from fused_cases import SETS, disagreements
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import diagonal_layer, dispatch, library
from ltc_textgen.kernels.diagonal_layer import Inputs, fused_layer
from ltc_textgen.layers import DiagonalLTC
from ltc_textgen.layers import diagonal as cells

pytestmark = pytest.mark.skipif(not SETS, reason=f"no CPU kernels here: {library.WHY_NOT}")

# Sequences shorter than a chunk, as long as several, and of lengths that no chunk divides; odd widths.
SHAPES = [(8, 5, 3, 37), (2, 300, 9, 18), (2, 1, 1, 1), (9, 67, 33, 64), (4, 128, 300, 5)]


@pytest.fixture
def used(monkeypatch):
    """The pass for every size, wherever the tests run, on two threads; a list that grows with every call."""
    monkeypatch.setattr(dispatch, "PRODUCT", True)
    monkeypatch.setattr(dispatch, "MIN_PRODUCT", 0)
    calls: list[int] = []

    def counted(*arguments):
        calls.append(1)
        return fused_layer(*arguments)

    monkeypatch.setattr(cells, "fused_layer", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield calls
    torch.set_num_threads(before)


def build(width: int, neurons: int, **options) -> DiagonalLTC:
    steps = options.setdefault("steps", 1)
    cell = DiagonalLTC(width, neurons, step_size=0.5 / steps, **options)
    with torch.no_grad():
        cell.self_weight.normal_()
        cell.reversal.normal_()
        cell.input.bias.normal_()
        cell.log_capacitance.uniform_(-0.5, 2.0)
    return cell


def draw(batch: int, tokens: int, width: int, neurons: int) -> dict[str, torch.Tensor]:
    """Uneven elapsed times, a zero among them."""
    elapsed = 2 * torch.rand(batch, tokens)
    elapsed[-1, 0] = 0.0
    return {"u": torch.randn(batch, tokens, width), "state": torch.randn(batch, neurons), "elapsed": elapsed}


def run(cell, inputs, choice="auto", dtype=torch.float32, mask=None, last_alone=False):
    """States, last state, and every gradient by name."""
    cell = copy.deepcopy(cell).to(dtype)
    leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in inputs.items()}
    with dispatch.use(choice):
        states, last = cell(**leaves, mask=mask)
    draws = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=draws).to(dtype) for out in (states, last)]
    loss = (last * weights[1]).sum() + (0 if last_alone else (states * weights[0]).sum())
    loss.backward()
    found = {"states": states.detach(), "last": last.detach()}
    named = [*leaves.items(), *cell.named_parameters()]
    return found | {f"gradient of {name}": t.grad for name, t in named if t.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("solver", list(Solver))
def test_equals_the_float64_reference(used, name, solver):
    torch.manual_seed(0)
    assert library.use_instruction_set(name)
    try:
        for (index, sizes), steps in itertools.product(enumerate(SHAPES), (1, 3)):
            cell = build(*sizes[2:], solver=solver, steps=steps, adaptive=(index + steps) % 2 == 0)
            inputs = draw(*sizes)
            expected = run(cell, inputs, "reference", torch.float64)
            found = run(cell, inputs)
            assert len(found) == 2 + 3 + 6
            assert disagreements(found, expected) == {}, (sizes, steps)
    finally:
        library.use_instruction_set(SETS[0])
    assert len(used) == 2 * len(SHAPES)


def test_padding_contraction_and_the_last_state_alone(used):
    torch.manual_seed(1)
    cell, inputs = build(6, 20, contractive=True), draw(4, 9, 6, 20)
    mask = torch.arange(9) < torch.tensor([9, 1, 0, 5])[:, None]
    for options in ({"mask": mask}, {"last_alone": True}):
        expected = run(cell, inputs, "reference", torch.float64, **options)
        assert disagreements(run(cell, inputs, **options), expected) == {}
    assert len(used) == 2


def test_same_bits_every_time_and_the_same_numbers_on_one_thread(used):
    torch.manual_seed(2)
    cell, inputs = build(40, 64), draw(10, 70, 40, 64)
    many, again = run(cell, inputs), run(cell, inputs)
    assert all(torch.equal(many[name], again[name]) for name in many)
    torch.set_num_threads(1)
    one = run(cell, inputs)
    assert torch.equal(many["states"], one["states"])
    assert torch.equal(many["gradient of u"], one["gradient of u"])
    assert disagreements(many, one) == {}
    assert len(used) == 3


@pytest.mark.parametrize("tokens", [6, 300])
def test_without_gradients_it_gives_the_same_bits_and_keeps_nothing(used, tokens):
    cell, inputs = build(5, 21), draw(2, tokens, 5, 21)
    expected = run(cell, inputs)
    with torch.no_grad():
        states, last = cell(**inputs)
        assert torch.equal(states, expected["states"])
        assert torch.equal(last, expected["last"])
        first, x = cell(inputs["u"][:, :4], inputs["state"], inputs["elapsed"][:, :4])
        rest, _ = cell(inputs["u"][:, 4:], x, inputs["elapsed"][:, 4:])
    assert torch.equal(torch.cat([first, rest], 1), states)
    assert len(used) == 4


def test_frozen_weights_and_inputs_with_gaps(used):
    cell, inputs = build(6, 20), draw(4, 9, 6, 20)
    whole = run(cell, inputs)
    for name in ("input.weight", "input.bias", "log_leak"):
        cell.get_parameter(name).requires_grad_(False)
    apart = {name: torch.stack([t, t], -1)[..., 0] for name, t in inputs.items()}
    assert not any(tensor.is_contiguous() for tensor in apart.values())
    found = run(cell, apart)
    assert len(found) == len(whole) - 3
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    cell.input.bias.requires_grad_(True)
    assert torch.equal(run(cell, inputs)["gradient of input.bias"], whole["gradient of input.bias"])


def test_gradients_without_memory(used):
    cell, inputs = build(6, 20), draw(4, 9, 6, 20)
    u = inputs["u"].requires_grad_()
    states, _ = cell(u)
    pull = torch.randn_like(states)
    (expected,) = torch.autograd.grad(states, u, pull, retain_graph=True)
    assert torch.equal(torch.autograd.grad(states, u, torch._neg_view(-pull), retain_graph=True)[0], expected)
    assert not torch.autograd.grad(states, u, torch._efficientzerotensor(states.shape))[0].any()


def test_where_it_may_not_run_the_two_steps_do(used, monkeypatch):
    cell, u = build(6, 20), torch.randn(4, 9, 6)
    expected = cell(u)[0]
    assert used == [1]
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(cells, "layer_pays", lambda *_: False)
        assert torch.equal(cell(u)[0], expected)
    handle = cell.input.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(cell(u)[0], expected, rtol=1e-5, atol=1e-5)
    assert seen == [1]
    handle.remove()

    def loss(given):
        return cell(given)[0].sum()

    (of_u,) = torch.autograd.grad(loss(u.requires_grad_()), u)
    assert used == [1, 1]
    u.requires_grad_(False)
    torch.testing.assert_close(torch.func.grad(loss)(u), of_u, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cell(u)
    with dispatch.use("reference"):
        cell(u)
    cell.double()(u.double())
    cell.float()(u[:3])  # one of two threads would have nothing to do for a third of the time
    for name, value in (("PRODUCT", False), ("MIN_PRODUCT", 1 << 20)):
        with monkeypatch.context() as patch:
            patch.setattr(dispatch, name, value)
            cell(u)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "MAX_PROJECTION", 239)
        cell(u)
    assert used == [1, 1]
    cell(u)
    assert used == [1, 1, 1]
    cell.project = lambda u: nn.functional.linear(u, 0 * cell.input.weight)
    assert not torch.allclose(cell(u)[0], expected)
    del cell.project
    cell.input = nn.Sequential(cell.input)
    cell(u)
    assert used == [1, 1, 1]


def arguments():
    cell = build(3, 5)
    weights = (cell.input.weight, cell.input.bias, *cell.physics())
    given = (torch.randn(2, 4, 3), torch.randn(2, 5), torch.rand(2, 4), *(weight.detach() for weight in weights))
    return Inputs(*given)._asdict()


def call(inputs, method=(1, 0, True)):
    """Past the annotations, which are checked in tests alone."""
    return diagonal_layer._run(method, *inputs.values())


def test_values_that_cannot_be():
    good = arguments()
    call(good)
    for name, value, message in (
        ("dt", -1.0, "elapsed"),
        ("dt", float("nan"), "elapsed"),
        ("capacitance", 0.0, "capacitance"),
    ):
        bad = good[name].clone()
        bad.view(-1)[1] = value
        with pytest.raises(UsageError, match=message):
            call(good | {name: bad})
    for method, message in (((0, 0, True), "steps: expected 1 or more"), ((1, 9, True), "solver: expected one of")):
        with pytest.raises(UsageError, match=message):
            call(good, method)


CHANGES = {
    "another size": lambda t: torch.cat([t, t], -1),
    "no entries": lambda t: t[..., :0],
    "one dimension more": lambda t: t[None],
    "double": lambda t: t.double(),
    "half": lambda t: t.bfloat16(),
    "on another device": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(Inputs._fields), st.sampled_from(list(CHANGES)))
def test_what_does_not_fit_is_an_error_and_no_crash(name, change):
    inputs = arguments()
    with pytest.raises(UsageError, match="expected"):
        call(inputs | {name: CHANGES[change](inputs[name])})
