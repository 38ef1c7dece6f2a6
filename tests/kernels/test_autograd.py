"""The fused kernels as operators: registered as PyTorch wants them, chosen when they should be, safe with bad input."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from fused_cases import KINDS, SETS, Case, build, disagreements
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from ltc_textgen.config import Coupling, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import dispatch, library
from ltc_textgen.kernels.scans import DIAGONAL, FULL, SYNAPTIC
from ltc_textgen.layers import base
from ltc_textgen.solvers import Method

pytestmark = pytest.mark.skipif(not SETS, reason=f"no CPU kernels here: {library.WHY_NOT}")

OPERATORS = {"diagonal": DIAGONAL, "full": FULL, "synaptic": SYNAPTIC}


def arguments(kind, batch=2, tokens=3, neurons=5):
    """Inputs that fit, by name, in the operator's order."""
    operator, draw = OPERATORS[kind], torch.Generator().manual_seed(0)
    inputs = {}
    for name, shape in zip(operator.inputs, operator.shapes(batch, tokens, neurons), strict=True):
        values = torch.rand(shape, generator=draw)
        inputs[name] = values > 0.3 if name == "mask" else values + 0.1
    return inputs


def call(kind, inputs, steps=2, solver=Solver.semi_implicit, adaptive=True):
    return OPERATORS[kind](*inputs.values(), method=Method(steps, solver, adaptive))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [0, 2])
def test_registration(kind, code):
    inputs = [t if t.dtype == torch.bool else t.requires_grad_() for t in arguments(kind).values()]
    operator = getattr(torch.ops.ltc, f"{kind}_scan").default
    torch.library.opcheck(operator, (*inputs, 2, code, True, True))


@pytest.mark.slow
def test_registration_of_the_sums():
    shapes = {"values": (4, 3), "w": (3, 5), "sigma": (3, 5), "mu": (3, 5), "reversal": (3, 5)}
    inputs = [torch.rand(shape).requires_grad_() for shape in shapes.values()]
    torch.library.opcheck(torch.ops.ltc.synaptic_sums.default, (*inputs, torch.rand(3, 5) > 0.3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_compiles_to_one_graph(kind):
    """In a process without the run-time checks of annotations, which a compiler cannot read."""
    program = f"""
import sys, torch
sys.path.insert(0, "tests/kernels")
from fused_cases import build
cell, u = build("{kind}", 20), torch.randn(2, 4, 3)
compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
elapsed = torch.rand(2, 4)
for inputs in (u, u.clone().requires_grad_()):
    ours, last = compiled(inputs, elapsed=elapsed)
    expected, _ = cell(inputs, elapsed=elapsed)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
ours.sum().backward()
gradient = [p.grad.clone() for p in cell.parameters() if p.grad is not None]
cell.zero_grad()
expected.sum().backward()
others = [p.grad for p in cell.parameters() if p.grad is not None]
assert len(gradient) == len(others) > 4
for one, other in zip(gradient, others):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
exported = torch.export.export(cell, (u,))
torch.testing.assert_close(exported.module()(u)[0], cell(u)[0])
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_reach_the_states(kind):
    cell, u = build(kind, 20), torch.randn(2, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = cell(u)
        y.float().sum().backward()
    assert last.dtype == torch.float32
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in cell.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_function_transforms_take_the_reference(kind):
    """They hand out wrapped tensors, which have no memory a kernel could read."""
    cell, case = build(kind, 6), Case.draw(kind, 2, 3, 6)
    weight = case.states_weight

    def loss(x):
        return (cell.scan(case.drive, x, case.elapsed)[0] * weight).sum()

    x = case.x.clone().requires_grad_()
    expected = torch.autograd.grad(loss(x), x)[0]
    for choice in ("auto", "parallel"):
        with dispatch.use(choice):
            torch.testing.assert_close(torch.func.grad(loss)(case.x), expected)


def test_choice(monkeypatch):
    drive = torch.zeros(1, 1, 2)
    assert dispatch.choose(Coupling.full, drive) == "cpu"
    assert dispatch.choose(Coupling.full, drive.double()) == "reference"
    with dispatch.use("reference"):
        assert dispatch.choose(Coupling.full, drive) == "reference"
        assert dispatch.report()["override"] == "reference"
    assert dispatch.choose(Coupling.full, drive) == "cpu"
    monkeypatch.setattr(dispatch, "LIBRARY", None)
    monkeypatch.setattr(dispatch, "WHY_NOT", "no compiler")
    assert dispatch.choose(Coupling.full, drive) == "reference"
    assert "no compiler" in dispatch.report()["cpu"]
    with dispatch.use("cpu"), pytest.raises(UsageError, match="no compiler"):
        dispatch.choose(Coupling.full, drive)
    monkeypatch.setattr(dispatch, "_chosen", "gpu")
    with pytest.raises(UsageError, match="LTC_KERNELS.*'gpu'"):
        dispatch.choose(Coupling.full, drive)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_what_runs(kind, monkeypatch):
    """A layer that fell back to the loop would pass every comparison with it."""
    cell, case = build(kind, 5), Case.draw(kind, 2, 3, 5)
    monkeypatch.setattr(base, "integrate", lambda *_: pytest.fail("the loop ran"))
    cell.scan(case.drive, case.x, case.elapsed)
    with dispatch.use("reference"), pytest.raises(pytest.fail.Exception):
        cell.scan(case.drive, case.x, case.elapsed)


@pytest.mark.parametrize("kind", KINDS)
def test_double_precision_takes_the_reference(kind):
    cell, case = build(kind, 5).double(), Case.draw(kind, 2, 3, 5)
    states, _ = cell.scan(case.drive.double(), case.x.double(), case.elapsed.double())
    assert states.dtype == torch.float64
    assert (
        disagreements({"states": states.detach()}, {"states": case.run(cell, "reference", torch.float64)["states"]})
        == {}
    )


BAD_VALUES = [
    ("capacitance", 0.0, "capacitance"),
    ("capacitance", -1.0, "capacitance"),
    ("leak", -0.5, "leak"),
    ("dt", -1.0, "elapsed"),
    ("dt", float("nan"), "elapsed"),
    ("dt", float("inf"), "elapsed"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_of_pytorch_do_not_reach_the_kernels(kind):
    """Memory of another dtype or on another device would be written past its end."""
    leaves = {n: t if t.dtype == torch.bool else t.requires_grad_() for n, t in arguments(kind).items()}
    wanted = [t for t in leaves.values() if t.requires_grad]
    expected, _ = call(kind, leaves)
    gradients = torch.autograd.grad(expected.square().sum(), wanted)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.no_grad():
            assert torch.equal(call(kind, leaves)[0], expected)
        with torch.device("meta"):
            again = torch.autograd.grad(call(kind, leaves)[0].square().sum(), wanted)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(one, other) for one, other in zip(again, gradients, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_whose_memory_does_not_hold_their_values(kind):
    inputs = arguments(kind)
    expected, _ = call(kind, inputs)
    assert torch.equal(call(kind, inputs | {"drive": torch._neg_view(-inputs["drive"])})[0], expected)
    zeros = torch.zeros_like(inputs["drive"])
    without_memory = torch._efficientzerotensor(zeros.shape)
    assert torch.equal(call(kind, inputs | {"drive": without_memory})[0], call(kind, inputs | {"drive": zeros})[0])


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_derivatives_take_the_reference(kind):
    cell, case = build(kind, 6), Case.draw(kind, 2, 3, 6)
    tangent = torch.randn_like(case.x)

    def run(x):
        return cell.scan(case.drive, x, case.elapsed)[0]

    with forward_ad.dual_level(), torch.no_grad():
        ours = forward_ad.unpack_dual(run(forward_ad.make_dual(case.x, tangent))).tangent
    torch.testing.assert_close(ours, torch.func.jvp(run, (case.x,), (tangent,))[1])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_bfloat16_mean_the_same_to_both_paths(kind):
    cell, case = build(kind, 64).bfloat16(), Case.draw(kind, 2, 9, 64)
    with dispatch.use("reference"), torch.no_grad():
        expected, _ = cell.scan(case.drive, case.x, case.elapsed)
    with torch.no_grad():
        torch.testing.assert_close(cell.scan(case.drive, case.x, case.elapsed)[0], expected, rtol=1e-5, atol=1e-5)


def test_doctor_says_why_a_gpu_cannot(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    dispatch.triton_problem.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("importlib.util.find_spec", lambda name: "found")
            assert dispatch.report()["triton"] == "none: compute capability 6.1, and Triton needs 7.0"
    finally:
        dispatch.triton_problem.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_rejects_an_unknown_solver(kind):
    """2**32 + 2 is 2 to C, a solver with four times the stages that were provided for."""
    for code in (-1, 4, 2**32 + 2):
        with pytest.raises(UsageError, match=f"solver.*{code}"):
            getattr(torch.ops.ltc, f"{kind}_scan")(*arguments(kind).values(), 2, code, True, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "value", "message"), BAD_VALUES)
def test_rejects_values(kind, name, value, message):
    inputs = arguments(kind)
    inputs[name].view(-1)[1] = value
    with pytest.raises(UsageError, match=message):
        call(kind, inputs)
    inputs["drive"].requires_grad_()
    with pytest.raises(UsageError, match=message):
        call(kind, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_not_numbers_show_in_the_states(kind):
    inputs = arguments(kind)
    inputs["capacitance"][1] = float("nan")
    states, _ = call(kind, inputs)
    assert bool(states[..., 1].isnan().all())


def spoil(tensor, how):
    """The tensor with one thing wrong, or as it was."""
    return {
        "none": lambda t: t,
        "double": lambda t: t.double(),
        "half": lambda t: t.half(),
        "integer": lambda t: t.long(),
        "meta": lambda t: t.to("meta"),
        "empty": lambda t: t[:0],
        "longer": lambda t: torch.cat([t, t]),
        "shorter": lambda t: t[..., :-1],
        "scalar": lambda t: t.reshape(-1)[0],
        "deeper": lambda t: t[None],
        "sparse": lambda t: t.to_sparse() if t.dtype != torch.bool else t.double(),
    }[how](tensor)


SPOILED = ["double", "half", "integer", "meta", "empty", "longer", "shorter", "scalar", "deeper", "sparse"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_input_ends_the_process(kind, data):
    inputs = arguments(kind, *(data.draw(st.integers(1, 20), label=name) for name in "BTN"))
    name, how = data.draw(st.sampled_from(list(inputs))), data.draw(st.sampled_from(SPOILED))
    spoiled = spoil(inputs[name], how)
    if spoiled.shape == inputs[name].shape and spoiled.dtype == inputs[name].dtype and how not in ("meta", "sparse"):
        return
    inputs[name] = spoiled
    with pytest.raises((UsageError, NotImplementedError)) as error:
        call(kind, inputs, solver=data.draw(st.sampled_from(list(Solver))))
    if isinstance(error.value, UsageError):
        assert "expected" in str(error.value)
        assert "got" in str(error.value)


def test_the_mask_alone_says_which_synapses_exist():
    inputs = arguments("synaptic", neurons=40)
    inputs["mask"][:, 16:32] = False
    expected, _ = call("synaptic", inputs | {"w": inputs["w"] * inputs["mask"]})
    names = ("w", "sigma", "mu", "reversal")
    leaves = [inputs[name].requires_grad_() for name in names]
    states, _ = call("synaptic", inputs)
    assert torch.equal(states, expected)
    for name, gradient in zip(names, torch.autograd.grad(states.sum(), leaves), strict=True):
        assert not gradient[~inputs["mask"]].any(), name
        assert gradient[inputs["mask"]].all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_memory_without_gradients_does_not_grow_with_the_sub_steps(kind):
    resource = pytest.importorskip("resource")
    inputs, unit = arguments(kind, batch=32, tokens=1), 1 if sys.platform == "darwin" else 1024
    call(kind, inputs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call(kind, inputs, steps=50_000)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2**26


@pytest.mark.parametrize("steps", [0, -3, 2**31])
def test_rejects_steps(steps):
    with pytest.raises(UsageError, match=f"steps: expected 1 or more, got {steps}"):
        call("diagonal", arguments("diagonal"), steps=steps)


@pytest.mark.slow
def test_a_child_process_computes_too():
    """A fork inherits no threads of the parent's pool; a kernel that waited for them would hang."""
    program = """
import os, sys, torch
sys.path.insert(0, "tests/kernels")
from fused_cases import Case, build
cell, case = build("diagonal", 256), Case.draw("diagonal", 8, 64, 256)
torch.set_grad_enabled(False)
expected, _ = cell.scan(case.drive, case.x, case.elapsed)
if os.fork() == 0:
    states, _ = cell.scan(case.drive, case.x, case.elapsed)
    os._exit(0 if states.tolist() == expected.tolist() else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], start_new_session=True)
    try:
        assert child.wait(timeout=60) == 0
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
