"""What every cell owes, whatever its coupling and solver: time, chunks, padding, precision, gradients, messages."""

import inspect
from itertools import pairwise

import pytest
import torch
from cell_kinds import ALL_CASES, CLOSED_KINDS, INPUTS, NEURONS, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

from ltc_textgen.config import Coupling, ModelConfig, Solver, WiringConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.layers import LAYERS, build_layer
from ltc_textgen.layers.base import broadcast_elapsed

SAME = {"rtol": 1e-12, "atol": 1e-12}


def text(batch=4, tokens=6, inputs=INPUTS, seed=1):
    return torch.randn(batch, tokens, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def state(batch=4, neurons=NEURONS, seed=2):
    return torch.rand(batch, neurons, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "solver", "adaptive"), ALL_CASES)
@torch.no_grad()
def test_whole_sequence_equals_chunks_and_single_tokens(kind, solver, adaptive):
    cell, u, elapsed = make(kind, solver, adaptive), text(), torch.rand(4, 6, dtype=torch.float64)
    whole, last = cell(u, state(), elapsed)
    for cuts in ([0, 2, 6], [0, 1, 2, 3, 4, 5, 6]):
        x, parts = state(), []
        for start, stop in pairwise(cuts):
            y, x = cell(u[:, start:stop], x, elapsed[:, start:stop])
            parts.append(y)
        assert_close(torch.cat(parts, 1), whole, **SAME)
        assert_close(x, last, **SAME)


@pytest.mark.parametrize("size", [2, 8])
def test_elapsed_times_that_could_be_of_samples_or_of_tokens(kind, size):
    cell, u, times = make(kind), text(size, size), torch.rand(size, dtype=torch.float64)
    with pytest.raises(UsageError, match=rf"elapsed.*\({size},\).*\({size}, 1\).*\({size}, {size}\)"):
        cell(u, elapsed=times)
    assert torch.equal(cell(u, elapsed=times[:, None])[0], cell(u, elapsed=times[:, None].expand(size, size))[0])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mask=", lambda u: (pack_padded_sequence(u, [6, 5, 3, 1], batch_first=True),)),
        ("mask=", lambda u: (u, torch.ones(4, 6, dtype=torch.bool))),
        ("mask=", lambda u: (u, None, torch.ones(4, 6, dtype=torch.bool))),
        ("input.*list", lambda u: (u.tolist(),)),
        ("input.*ndarray", lambda u: (u.numpy(),)),
        ("state.*tuple", lambda u: (u, (state(), state()))),
        ("elapsed.*list", lambda u: (u, None, [1.0] * 4)),
        ("elapsed.*str", lambda u: (u, None, "1")),
        ("elapsed.*bool", lambda u: (u, None, True)),
        ("mask.*list", lambda u: (u, None, None, [[True] * 6] * 4)),
        ("mask.*int64", lambda u: (u, None, None, torch.ones(4, 6, dtype=torch.int64))),
    ],
)
def test_types_are_checked_and_the_argument_is_named(name, arguments):
    """Past the annotations, which are checked in tests alone."""
    cell, (u, *more) = make("diagonal"), arguments(text())
    values = dict(zip(("state", "elapsed", "mask"), more, strict=False))

    def check():
        cell._check(u, values.get("state"), values.get("mask"))
        inspect.unwrap(broadcast_elapsed)(values.get("elapsed"), 4, 6, text())

    with pytest.raises(UsageError, match=name):
        check()


# 8 = N: where batch, tokens and neurons are as many, a wrong broadcast raises no error.
@pytest.mark.slow
@pytest.mark.parametrize(("batch", "tokens"), [(4, 6), (NEURONS, NEURONS), (1, 3), (3, 1)])
@pytest.mark.parametrize("shape", ["()", "(B,)", "(B, 1)", "(B, T)"])
@torch.no_grad()
def test_elapsed_time_of_every_shape_equals_a_loop_over_samples(kind, shape, batch, tokens):
    if shape == "(B,)" and batch == tokens > 1:
        pytest.skip("ambiguous: see test_elapsed_times_that_could_be_of_samples_or_of_tokens")
    cell, u, x = make(kind), text(batch, tokens), state(batch)
    size = {"()": (), "(B,)": (batch,), "(B, 1)": (batch, 1), "(B, T)": (batch, tokens)}[shape]
    elapsed = 0.1 + torch.rand(size, dtype=torch.float64)
    y, last = cell(u, x, elapsed)
    for b in range(batch):
        alone = x[b : b + 1]
        for t in range(tokens):
            here = {"()": (), "(B,)": (b,), "(B, 1)": (b, 0), "(B, T)": (b, t)}[shape]
            out, alone = cell(u[b : b + 1, t : t + 1], alone, elapsed[here].item())
            assert_close(out[0, 0], y[b, t], **SAME)
        assert_close(alone[0], last[b], **SAME)


@torch.no_grad()
def test_elapsed_time_counts(kind):
    cell, u = make(kind), text()
    assert (cell(u, state(), 0.5)[1] - cell(u, state(), 1.0)[1]).abs().min() > 1e-6
    assert_close(cell(u, state()), cell(u, state(), 1.0), rtol=0, atol=0)


NOISE = st.sampled_from([0.0, 1e30, -1e30, float("nan"), float("inf")])


@given(mask=st.lists(st.booleans(), min_size=5, max_size=5), noise=NOISE)
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def check_padding(cell, mask, noise):
    u, x, real = text(1, 5), state(1), torch.tensor([mask])
    elapsed = torch.rand(1, 5, dtype=torch.float64)
    padded = torch.where(real[:, :, None], u, noise)
    states, last = cell.trajectory(padded, x, elapsed, real)
    outputs, _ = cell(padded, x, elapsed, real)
    before, expected = x, [x[:, None]]
    if any(mask):
        expected = [*cell.trajectory(u[real][None], x, elapsed[real][None])[0].split(1, dim=1)]
        before = expected[-1][:, 0]
    assert_close(last, before, **SAME)
    here, seen = x[:, None], 0
    for t in range(5):
        if mask[t]:
            here, seen = expected[seen], seen + 1
        assert_close(states[:, t : t + 1], here, **SAME)
        assert_close(outputs[:, t : t + 1], cell.readout(here), **SAME)


@pytest.mark.slow
def test_padding_anywhere_with_any_content_moves_no_state(kind):
    check_padding(make(kind))


@pytest.mark.parametrize("noise", [1e30, float("nan")])
def test_padding_has_no_gradient_and_spoils_none(kind, noise):
    cell, u = make(kind), text()
    mask = torch.tensor([1, 0, 1, 1, 0, 0]).bool().expand(4, 6)
    u = torch.where(mask[:, :, None], u, noise).requires_grad_()
    cell(u, state(), None, mask)[0].sum().backward()
    assert u.grad is not None
    assert not u.grad[~mask].any()
    assert u.grad[mask].isfinite().all()
    assert all(p.grad.isfinite().all() for p in cell.parameters())


@torch.no_grad()
def test_samples_do_not_see_each_other(kind):
    cell, u, x = make(kind), text(), state()
    y, _ = cell(u, x)
    other, _ = cell(torch.cat([u[:1], 7 * u[1:]]), torch.cat([x[:1], x[1:] - 3]))
    assert_close(other[0], y[0], **SAME)
    assert (other[1:] - y[1:]).abs().max() > 0.01


@torch.no_grad()
def test_nothing_is_remembered_but_the_state(kind):
    cell, u = make(kind), text()
    first = cell(u)
    cell(5 * u, state(), 3.0)
    assert_close(cell(u), first, rtol=0, atol=0)
    assert_close(first, cell(u, torch.zeros(4, NEURONS, dtype=torch.float64)), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "solver", "adaptive"), ALL_CASES)
def test_gradients_against_finite_differences(kind, solver, adaptive):
    cell = make(kind, solver, adaptive, inputs=2, neurons=6)
    u, x = text(2, 2, 2).requires_grad_(), state(2, 6).requires_grad_()
    elapsed = torch.tensor([[0.5, 1.2], [0.9, 0.3]], dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*cell.named_parameters(), strict=True)

    def run(u, x, elapsed, *values):
        return functional_call(cell, dict(zip(names, values, strict=True)), (u, x, elapsed))

    assert torch.autograd.gradcheck(run, (u, x, elapsed, *parameters), fast_mode=True)


@pytest.mark.parametrize("kind", ["full", "diagonal", "synaptic", *CLOSED_KINDS])
def test_every_parameter_learns_from_the_start(kind):
    cell = make(kind)
    cell.reset_parameters() if hasattr(cell, "reset_parameters") else [form.reset_parameters() for form in cell.forms]
    cell(text(), state())[0].square().sum().backward()
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-8, name


@torch.no_grad()
def test_states_stay_float32_under_autocast(kind):
    cell, u = make(kind).float(), text().float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = u @ torch.eye(INPUTS)
        assert mixed.dtype == torch.bfloat16
        y, last = cell(mixed, state().float())
        constants = cell.time_constants(mixed, cell.trajectory(mixed)[0])
    assert {y.dtype, last.dtype, constants.dtype} == {torch.float32}
    exact, _ = cell(u, state().float())
    assert_close(y, exact, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_bfloat16_weights_keep_float32_states(kind):
    cell = make(kind).bfloat16()
    y, last = cell(text().bfloat16())
    constants = cell.time_constants(text().bfloat16(), cell.trajectory(text().bfloat16())[0])
    assert {y.dtype, last.dtype, constants.dtype, cell.initial_state(2).dtype} == {torch.float32}
    assert_close(y, cell.float()(text().float())[0], rtol=0.05, atol=0.05)


def test_float64_stays_float64(kind):
    assert {tensor.dtype for tensor in make(kind)(text())} == {torch.float64}


@torch.no_grad()
def test_time_constants_of_a_token_depend_on_that_token_alone(kind):
    cell, u = make(kind), text()
    states, _ = cell.trajectory(u)
    constants = cell.time_constants(u, states)
    assert constants.shape == (4, 6, NEURONS)
    assert (constants > 0).all()
    assert_close(constants[2:3, 4:5], cell.time_constants(u[2:3, 4:5], states[2:3, 4:5]), **SAME)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"u": text(inputs=4)}, r"input: expected \(B, T, 3\) with B, T >= 1, got \(4, 6, 4\)"),
        ({"u": text()[0]}, r"input: expected \(B, T, 3\) with B, T >= 1, got \(6, 3\)"),
        ({"u": text()[:, :0]}, r"input: expected \(B, T, 3\) with B, T >= 1, got \(4, 0, 3\)"),
        ({"u": text().long()}, "input"),
        ({"u": text().float()}, "input"),
        ({"state": state(5)}, r"state: expected \(4, 8\), got \(5, 8\)"),
        ({"state": state()[:, :7]}, r"state: expected \(4, 8\), got \(4, 7\)"),
        ({"state": state().long()}, "state"),
        ({"elapsed": torch.ones(6)}, r"elapsed: expected shape \(\), \(4,\), \(4, 1\) or \(4, 6\), got \(6,\)"),
        ({"elapsed": torch.ones(1, 6)}, r"elapsed: expected shape .* got \(1, 6\)"),
        ({"elapsed": torch.ones(4, 6, 1)}, r"elapsed: expected shape .* got \(4, 6, 1\)"),
        ({"elapsed": -0.1}, "elapsed"),
        ({"elapsed": torch.tensor([1.0, 1.0, float("nan"), 1.0])}, "elapsed"),
        ({"elapsed": float("inf")}, "elapsed"),
        ({"elapsed": torch.ones(4, dtype=torch.bool)}, "elapsed: expected numbers, got torch.bool"),
        ({"elapsed": torch.ones(4, dtype=torch.complex64)}, "elapsed: expected numbers, got torch.complex64"),
        ({"mask": torch.ones(4, 5).bool()}, r"mask: expected torch.bool of \(4, 6\), got torch.bool of \(4, 5\)"),
        ({"mask": torch.ones(4, 6)}, r"mask: expected torch.bool of \(4, 6\), got torch.float32 of \(4, 6\)"),
    ],
)
def test_bad_input_is_named(kind, arguments, message):
    with pytest.raises(UsageError, match=message):
        make(kind)(**{"u": text()} | arguments)


def test_elapsed_time_may_be_whole_numbers(kind):
    cell, u = make(kind), text()
    assert_close(cell(u, elapsed=torch.tensor([1, 2, 0, 3]))[0][1], cell(u, elapsed=2)[0][1], **SAME)


class TestBuildCell:
    def test_every_coupling_is_registered(self):
        assert set(LAYERS) == set(Coupling)

    @pytest.mark.parametrize("coupling", [Coupling.full, Coupling.diagonal, Coupling.synaptic])
    def test_solver_settings_arrive(self, coupling):
        settings = ModelConfig(
            input_size=9, coupling=coupling, steps=3, step_size=0.7, solver="RungeKutta", adaptive=False
        )
        cell = build_layer(settings, 5, 6)
        assert type(cell) is LAYERS[coupling]
        assert (cell.input_size, cell.hidden_size, cell.output_size) == (5, 6, 6)
        assert (cell.steps, cell.step_size, cell.solver, cell.adaptive) == (3, 0.7, Solver.runge_kutta, False)

    def test_contractive_arrives(self):
        assert build_layer(ModelConfig(input_size=9, coupling="diagonal", contractive=True), 5, 6).contractive

    @pytest.mark.parametrize("coupling", [Coupling.synaptic, Coupling.cfc])
    def test_wiring_arrives(self, coupling):
        wiring = WiringConfig(kind="auto_ncp", output_size=4)
        cell = build_layer(ModelConfig(input_size=9, coupling=coupling, wiring=wiring), 5, 16)
        assert cell.output_size == 4
        assert cell(torch.randn(2, 3, 5))[0].shape == (2, 3, 4)

    def test_closed_form_settings_arrive(self):
        settings = ModelConfig(
            input_size=9,
            coupling="cfc",
            cfc_mode="no_gate",
            cfc_backbone_units=7,
            cfc_backbone_layers=3,
            steps=2,
            step_size=0.7,
        )
        cell = build_layer(settings, 5, 6)
        form = cell.forms[0]
        assert (form.mode, form.input.out_features, len(form.backbone)) == ("no_gate", 7, 2)
        assert (cell.steps, cell.step_size) == (2, 0.7)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"solver": "explicit"}, "solver = explicit"),
            ({"adaptive": False}, "no adaptive = False"),
        ],
    )
    def test_closed_form_rejects_unsupported_settings(self, setting, message):
        with pytest.raises(UsageError, match=message):
            build_layer(ModelConfig(input_size=9, coupling="cfc", **setting), 5, 6)
