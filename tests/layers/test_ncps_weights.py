"""Weights of ncps give its outputs and gradients in our cells: every wiring, constraint, mapping and mode.

ncps mixes up samples and neurons in batched timespans (its issues 81 to 83), so its cells are called here step by
step with elapsed times of shape (B, 1), where they are right.
"""

import inspect

import ncps.torch as theirs
import ncps.wirings
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ltc_textgen.errors import ArtifactError
from ltc_textgen.layers import CfC, SynapticLTC, layer_from_ncps

D, BATCH, TOKENS = 5, 3, 4
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # float64: what is left is the epsilon in their denominators
SINGLE = {"rtol": 1e-5, "atol": 1e-5}

WIRINGS = {
    "fully_connected": lambda: ncps.wirings.FullyConnected(7),
    "fully_connected_no_self": lambda: ncps.wirings.FullyConnected(7, 3, self_connections=False),
    "random": lambda: ncps.wirings.Random(9, 4, 0.5),
    "ncp": lambda: ncps.wirings.NCP(6, 4, 3, 2, 2, 3, 2),
    "auto_ncp": lambda: ncps.wirings.AutoNCP(14, 4),
}


@pytest.fixture(params=WIRINGS)
def wiring(request):
    torch.manual_seed(0)
    return WIRINGS[request.param]()


def trained(module):
    """Move every weight from where it started, as training would, and keep clipped ones clipped."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    cell = getattr(module, "rnn_cell", module)
    if hasattr(cell, "apply_weight_constraints"):
        cell.apply_weight_constraints()
    return module.double().eval()


def compare(module, cell, order=None, outputs=None):
    """Outputs, last state and gradients of both on the same inputs, states and elapsed times."""
    units = cell.hidden_size
    order = torch.arange(units) if order is None else order
    step = getattr(module, "rnn_cell", module)
    sizes = ((BATCH, TOKENS, D), (BATCH, units), (BATCH, TOKENS))
    u, x, elapsed = (torch.randn(size, dtype=torch.float64) for size in sizes)
    inputs = [u, x, 0.1 + elapsed.abs()]
    ours_in, theirs_in = ([tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2))

    y, last = cell(*ours_in)
    u, x, elapsed = theirs_in
    h, collected = x[:, order], []
    for t in range(TOKENS):
        out, h = step(u[:, t], h, elapsed[:, t : t + 1])
        collected.append(out[:, :outputs])
    expected = torch.stack(collected, 1)
    assert_close(y, expected, **CLOSE)
    assert_close(last[:, order], h, **CLOSE)

    pull = torch.randn_like(expected)
    (y * pull).sum().backward()
    (expected * pull).sum().backward()
    for ours, them in zip(ours_in, theirs_in, strict=True):
        assert them.grad.abs().max() > 1e-4
        assert_close(ours.grad, them.grad, **CLOSE)


class TestLTC:
    @pytest.mark.parametrize("implicit", [True, False])
    def test_every_wiring(self, wiring, implicit):
        module = trained(theirs.LTC(D, wiring, implicit_param_constraints=implicit))
        cell = layer_from_ncps(module.state_dict(), constraints="implicit" if implicit else "clipped")
        assert isinstance(cell, SynapticLTC)
        compare(module, cell)
        if not implicit:
            assert (module.rnn_cell.w == 0).any(), "a clipped weight is among them"

    def test_gradients_of_parameters(self, wiring):
        module = trained(theirs.LTC(D, wiring))
        cell = layer_from_ncps(module.state_dict())
        compare(module, cell)
        for name, group in (("", cell.recurrent), ("sensory_", cell.sensory)):
            for their_name, ours in (("w", group.raw_weight), ("sigma", group.sigma), ("mu", group.mu)):
                assert_close(ours.grad, getattr(module.rnn_cell, name + their_name).grad, **CLOSE)
            assert_close(group.reversal.grad, getattr(module.rnn_cell, name + "erev").grad, **CLOSE)
        for ours, their_name in (
            (cell.raw_capacitance, "cm"),
            (cell.raw_leak, "gleak"),
            (cell.rest, "vleak"),
            (cell.input_scale, "input_w"),
            (cell.input_shift, "input_b"),
            (cell.output_scale, "output_w"),
            (cell.output_shift, "output_b"),
        ):
            assert_close(ours.grad, getattr(module.rnn_cell, their_name).grad, **CLOSE)

    def test_gradients_of_clipped_weights(self, wiring):
        """Our weights are softplus(raw), so theirs must agree up to its slope."""
        module = trained(theirs.LTC(D, wiring, implicit_param_constraints=False))
        cell = layer_from_ncps(module.state_dict(), constraints="clipped")
        compare(module, cell)
        for ours, them in ((cell.recurrent.raw_weight, module.rnn_cell.w), (cell.raw_leak, module.rnn_cell.gleak)):
            assert_close(ours.grad, them.grad * torch.sigmoid(ours.detach()), **CLOSE)
            assert_close(F.softplus(ours.detach()), them.detach(), **CLOSE)

    @pytest.mark.parametrize("input_mapping", ["affine", "linear", None])
    @pytest.mark.parametrize("output_mapping", ["affine", "linear", None])
    def test_every_mapping(self, input_mapping, output_mapping):
        wiring = ncps.wirings.AutoNCP(14, 4)
        module = trained(theirs.LTC(D, wiring, input_mapping=input_mapping, output_mapping=output_mapping))
        compare(module, layer_from_ncps(module.state_dict(), output_size=4))

    @pytest.mark.parametrize("implicit", [True, False])
    def test_bare_cell_whose_default_is_clipped(self, wiring, implicit):
        module = trained(theirs.LTCCell(wiring, D, implicit_param_constraints=implicit))
        compare(module, layer_from_ncps(module.state_dict(), constraints="implicit" if implicit else None))

    def test_sub_steps(self, wiring):
        module = trained(theirs.LTC(D, wiring, ode_unfolds=3))
        compare(module, layer_from_ncps(module.state_dict(), steps=3))

    def test_whole_module_without_timespans(self, wiring):
        module = theirs.LTC(D, wiring)
        u, x = torch.randn(BATCH, TOKENS, D), torch.rand(BATCH, wiring.units)
        assert_close(layer_from_ncps(module.state_dict())(u, x), module(u, x), **SINGLE)

    def test_number_of_units_in_place_of_a_wiring(self):
        module = trained(theirs.LTC(D, 6))
        compare(module, layer_from_ncps(module.state_dict()))

    def test_float64(self):
        module = theirs.LTC(D, 6).double()
        assert layer_from_ncps(module.state_dict()).rest.dtype == torch.float64


class TestCfC:
    @pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])
    @pytest.mark.parametrize("layers", [0, 1, 2, 3])
    def test_every_mode_and_backbone(self, mode, layers):
        torch.manual_seed(0)
        module = trained(theirs.CfC(D, 7, mode=mode, backbone_layers=layers, backbone_units=11))
        cell = layer_from_ncps(module.state_dict(), mode=mode)
        assert isinstance(cell, CfC)
        compare(module, cell)

    @pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])
    def test_every_wiring(self, wiring, mode):
        module = trained(theirs.CfC(D, wiring, mode=mode))
        cell = layer_from_ncps(module.state_dict(), mode=mode)
        order = torch.cat([torch.arange(layer.start, layer.stop) for layer in cell.wiring.layers])
        compare(module, cell, order)

    @pytest.mark.parametrize("activation", ["lecun_tanh", "tanh", "relu", "silu", "gelu"])
    def test_every_activation(self, activation):
        torch.manual_seed(0)
        module = trained(theirs.CfC(D, 7, activation=activation, backbone_layers=2, backbone_dropout=0.1))
        compare(module, layer_from_ncps(module.state_dict(), activation=activation))

    def test_bare_cell(self):
        torch.manual_seed(0)
        module = trained(theirs.CfCCell(D, 7))
        compare(module, layer_from_ncps(module.state_dict()))

    def test_whole_module_without_timespans(self):
        torch.manual_seed(0)
        module = theirs.CfC(D, 7)
        u, x = torch.randn(BATCH, TOKENS, D), torch.rand(BATCH, 7)
        assert_close(layer_from_ncps(module.state_dict())(u, x), module(u, x), **SINGLE)

    def test_gradients_of_parameters(self):
        torch.manual_seed(0)
        module = trained(theirs.CfC(D, 7, backbone_layers=2))
        cell = layer_from_ncps(module.state_dict())
        compare(module, cell)
        form, them = cell.forms[0], module.rnn_cell
        first = torch.cat([form.input.weight.grad, form.recurrent_weight.grad], 1)
        assert_close(first, them.backbone[0].weight.grad, **CLOSE)
        assert_close(form.backbone[0].weight.grad, them.backbone[2].weight.grad, **CLOSE)
        heads = torch.cat([h.weight.grad for h in (them.ff1, them.ff2, them.time_a, them.time_b)])
        assert_close(form.heads.weight.grad, heads, **CLOSE)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (lambda: theirs.LTC(D, 6, mixed_memory=True).state_dict(), {}, "mixed_memory=True"),
        (lambda: theirs.CfC(D, 6, mixed_memory=True).state_dict(), {}, "mixed_memory=True"),
        (lambda: theirs.CfC(D, 6, proj_size=2).state_dict(), {}, "proj_size"),
        (lambda: theirs.CfC(D, 6, mode="pure").state_dict(), {"mode": "no_gate"}, "no_gate"),
        (lambda: theirs.CfC(D, 6).state_dict(), {"mode": "pure"}, "mode pure"),
        (lambda: torch.nn.LSTM(D, 6).state_dict(), {}, "expected an LTC .* found bias_hh_l0, bias_ih_l0, weight_hh_l0"),
        (dict, {}, "ncps weights"),
    ],
)
def test_what_does_not_fit_is_rejected(weights, options, message):
    with pytest.raises(ArtifactError, match=message):
        layer_from_ncps(weights(), **options)


@pytest.mark.parametrize("name", ["w", "sensory_w", "cm", "gleak"])
def test_negative_weights_under_clipped_constraints_are_rejected(name):
    weights = theirs.LTCCell(ncps.wirings.FullyConnected(6), D).state_dict()
    weights[name].flatten()[0] = -0.1
    with pytest.raises(ArtifactError, match=f"{name} "):
        layer_from_ncps(weights)


def test_negative_weights_of_missing_synapses_do_not_matter():
    weights = theirs.LTCCell(ncps.wirings.FullyConnected(6, self_connections=False), D).state_dict()
    weights["w"][2, 2] = -0.1
    assert layer_from_ncps(weights).recurrent.synapses.w.isfinite().all()


def test_missing_tensor_is_named():
    weights = theirs.LTC(D, 6).state_dict()
    del weights["rnn_cell.sensory_mu"]
    with pytest.raises(ArtifactError, match="sensory_mu"):
        layer_from_ncps(weights)


FOREIGN = {
    "LTC": lambda: theirs.LTC(D, ncps.wirings.AutoNCP(14, 4)),
    "CfC": lambda: theirs.CfC(D, 7, mode="pure", backbone_layers=2, backbone_units=11),
    "wired CfC": lambda: theirs.CfC(D, ncps.wirings.AutoNCP(14, 4)),
}


@pytest.mark.parametrize("module", FOREIGN)
@pytest.mark.parametrize("change", ["a row more", "a row less", "a dimension more", "a scalar"])
def test_every_tensor_of_another_shape_is_named(module, change):
    weights = FOREIGN[module]().state_dict()
    for name, tensor in weights.items():
        wrong = {
            "a row more": torch.cat([tensor, tensor[:1]]),
            "a row less": tensor[1:],
            "a dimension more": tensor[None],
            "a scalar": tensor.flatten()[0],
        }[change]
        with pytest.raises(ArtifactError, match="^ncps weights: ") as error:
            layer_from_ncps({**weights, name: wrong})
        assert "\n" not in str(error.value), name


def test_more_outputs_than_neurons_are_rejected():
    weights = theirs.LTC(D, 6, output_mapping=None).state_dict()
    with pytest.raises(ArtifactError, match="expected 1 to 6 outputs, got 7"):
        layer_from_ncps(weights, output_size=7)


@pytest.mark.parametrize("prefix", ["", "module.", "rnn.", "model.0.rnn."])
@pytest.mark.parametrize("make", [lambda: theirs.LTC(D, 5), lambda: theirs.CfC(D, 7)])
def test_modules_and_prefixed_names(prefix, make):
    module = make()
    expected = layer_from_ncps(module.state_dict()).state_dict()
    found = layer_from_ncps({prefix + name: value for name, value in module.state_dict().items()}).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(
        torch.equal(a, b) for a, b in zip(layer_from_ncps(module).state_dict().values(), expected.values(), strict=True)
    )


def test_names_beside_the_prefix_are_an_error_that_names_both():
    rnn = {f"rnn.{name}": value for name, value in theirs.LTC(D, 5).state_dict().items()}
    with pytest.raises(ArtifactError, match=r"'rnn\.'.*fc\.bias"):
        layer_from_ncps(rnn | {"fc.weight": torch.zeros(4, 5), "fc.bias": torch.zeros(4)})
    for wrong in ([1, 2], {"gleak": 3}, {1: torch.zeros(2)}):
        with pytest.raises(ArtifactError):
            inspect.unwrap(layer_from_ncps)(wrong)
