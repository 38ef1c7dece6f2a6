"""The closed-form cell: bounds, time, sparsity, and the part that is taken out of the loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ltc_textgen.errors import UsageError
from ltc_textgen.layers import CfC
from ltc_textgen.layers.cfc import TAU_RANGE, lecun_tanh
from ltc_textgen.layers.wirings import auto_ncp, fully_connected


def make(mode="default", **settings):
    torch.manual_seed(0)
    cell = CfC(3, 7, mode=mode, **{"backbone_units": 5} | settings).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return cell


loud = st.sampled_from([0.0, 1.0, -1.0, 30.0, 1e6, -1e6])


@pytest.mark.parametrize(("mode", "bound"), [("default", 1), ("no_gate", 2)])
@pytest.mark.parametrize("layers", [0, 2])
@given(inputs=st.lists(loud, min_size=3, max_size=3), start=loud, elapsed=st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_states_are_bounded_for_any_input_start_and_time(mode, bound, layers, inputs, start, elapsed):
    cell = make(mode, backbone_layers=layers)
    u = torch.tensor(inputs, dtype=torch.float64).expand(2, 4, 3)
    states, _ = cell(u, torch.full((2, 7), start, dtype=torch.float64), elapsed)
    assert states.isfinite().all()
    assert states.abs().max() <= bound


@torch.no_grad()
def test_bound_of_no_gate_is_its_own():
    """Beyond 1, so that the bound above is not the default's."""
    cell = make("no_gate", backbone_layers=0)
    states, _ = cell(30 * torch.randn(4, 20, 3, dtype=torch.float64))
    assert states.abs().max() > 1.5


@pytest.mark.parametrize("mode", ["default", "no_gate", "pure"])
@torch.no_grad()
def test_formula(mode):
    cell, u, x = make(mode, steps=3, step_size=0.5), torch.randn(2, 3).double(), torch.randn(2, 7).double()
    form = cell.forms[0]
    joint = torch.cat([form.input.weight, form.recurrent_weight], 1)
    z = lecun_tanh(torch.cat([u, x], 1) @ joint.T + form.input.bias)
    heads = (z @ form.heads.weight.T + form.heads.bias).chunk(1 if mode == "pure" else 4, 1)
    t = 3 * 0.5 * 0.8
    if mode == "pure":
        expected = form.A - form.A * torch.exp(-t * (form.w_tau.abs() + heads[0].abs())) * heads[0]
    else:
        f1, f2, a, b = heads
        s = 1 / (1 + torch.exp(-a * t - b))
        kept = 1 if mode == "no_gate" else 1 - s
        expected = kept * f1.tanh() + s * f2.tanh()
    assert_close(cell(u[:, None], x, 0.8)[1], expected)


@torch.no_grad()
def test_horizon_is_one_evaluation_of_steps_times_step_size():
    u = torch.randn(2, 4, 3, dtype=torch.float64)
    once, parted = make(steps=1, step_size=1.2), make(steps=6, step_size=0.2)
    assert_close(once(u), parted(u))
    assert_close(once(u, elapsed=0.5), make(steps=1, step_size=0.6)(u))


@torch.no_grad()
def test_endless_time_opens_or_shuts_the_gate():
    cell, u, x = make(backbone_layers=0), torch.randn(2, 1, 3).double(), torch.randn(2, 7).double()
    f1, f2, a, _ = cell.forms[0]._outputs(cell.project(u)[:, 0], x).chunk(4, 1)
    assert_close(cell(u, x, 1e12)[1], torch.where(a > 0, f2.tanh(), f1.tanh()))


@torch.no_grad()
def test_no_elapsed_time_is_not_the_identity_but_padding_is():
    cell, u, x = make(), torch.randn(2, 1, 3).double(), torch.randn(2, 7).double()
    assert (cell(u, x, 0.0)[1] - x).abs().min() > 1e-3
    assert cell(u, x, 0.0, torch.zeros(2, 1).bool())[1].equal(x)


@torch.no_grad()
def test_time_constants_are_those_of_the_gate():
    cell, u, x = make(), torch.randn(2, 1, 3).double(), torch.randn(2, 1, 7).double()
    a = cell.forms[0]._outputs(cell.project(u)[:, 0], x[:, 0]).chunk(4, 1)[2]
    assert_close(cell.time_constants(u, x)[:, 0], 1 / a.abs())


def test_w_tau_can_learn_from_the_start():
    torch.manual_seed(0)
    w_tau = CfC(3, 400, mode="pure").forms[0].w_tau
    assert 1 / TAU_RANGE[1] <= w_tau.min() < 2 / TAU_RANGE[1]
    assert 0.5 / TAU_RANGE[0] < w_tau.max() <= 1 / TAU_RANGE[0]


class TestWired:
    wiring = auto_ncp(16, 3, 4, 0.6)

    def jacobian(self, cell, of, size):
        u, x = torch.randn(1, 1, 3).double(), torch.randn(1, 16).double()
        runs = {"input": (lambda v: cell.trajectory(v[None], x)[1][0], u[0]), "state": (lambda v: cell(u, v)[1][0], x)}
        function, at = runs[of]
        return torch.autograd.functional.jacobian(function, at).reshape(16, size)

    @pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])
    def test_first_layer_receives_inputs_and_itself_only(self, mode):
        cell = CfC(3, 16, mode=mode, wiring=self.wiring).double()
        inter = list(self.wiring.layers[0])
        others = [n for n in range(16) if n not in inter]
        assert not self.jacobian(cell, "state", 16)[inter][:, others].any()
        assert self.jacobian(cell, "state", 16)[inter][:, inter].any()

    def test_pure_cell_has_no_path_but_the_wirings(self):
        """In `pure`, whose only head is masked, an input reaches an inter neuron exactly where there is a synapse."""
        cell = CfC(3, 16, mode="pure", wiring=self.wiring).double()
        inter = list(self.wiring.layers[0])
        reached = self.jacobian(cell, "input", 3)[inter] != 0
        assert reached.equal(torch.from_numpy(self.wiring.sensory[:, inter].T != 0))

    def test_heads_f1_and_f2_are_masked_and_gates_are_not(self):
        cell = CfC(3, 16, wiring=self.wiring)
        inter, command, _ = self.wiring.layers
        for form, synapses in zip(
            cell.forms, (self.wiring.sensory[:, inter], self.wiring.adjacency[inter][:, command]), strict=False
        ):
            f1, f2, a, b = form.mask.chunk(4)
            expected = torch.from_numpy(synapses.T != 0)
            assert f1.equal(expected)
            assert f2.equal(expected)
            assert a.all()
            assert b.all()

    def test_outputs_are_the_motor_neurons(self):
        cell = CfC(3, 16, wiring=self.wiring)
        y, last = cell(torch.randn(2, 5, 3))
        assert y.shape == (2, 5, 4)
        assert_close(y[:, -1], last[:, :4])
        assert {name for name in cell.state_dict() if "mask" in name} == {f"layers.{i}.mask" for i in range(3)}

    def test_one_layer_may_have_fewer_outputs_than_neurons(self):
        y, last = CfC(3, 6, wiring=fully_connected(6, 3, 2))(torch.randn(2, 5, 3))
        assert_close(y[:, -1], last[:, :2])

    def test_wiring_of_other_sizes_is_rejected(self):
        with pytest.raises(UsageError, match=r"expected 4 inputs and 16 neurons, got \(3, 16\)"):
            CfC(4, 16, wiring=self.wiring)


def test_inputs_are_projected_once_for_all_tokens(monkeypatch):
    """Item by item only what depends on the state is left."""
    from ltc_textgen.layers import cfc

    shapes = []
    monkeypatch.setattr(
        cfc, "linear", lambda u, *rest: (shapes.append(tuple(u.shape)), torch.nn.functional.linear(u, *rest))[1]
    )
    make()(torch.randn(2, 9, 3, dtype=torch.float64))
    assert shapes == [(2, 9, 3)]
