"""The network as a whole: its calls, its state, padding, its heads, and its place in transformers."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import ltc_textgen
from ltc_textgen.config import Coupling, ModelConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.hf.config import LTCConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.model.blocks import LockedDropout
from ltc_textgen.model.state import LiquidState

VOCABULARY = 23
SHAPES = [
    {},
    {"num_layers": 2, "coupling": "synaptic", "wiring": {"kind": "auto_ncp", "output_size": 6, "sparsity": 0.5}},
    {"coupling": "cfc", "cfc_backbone_units": 9},
    {"block": "liquid", "coupling": "diagonal", "num_layers": 2, "tie_embeddings": True, "expansion": 1.5},
    {"block": "liquid", "coupling": "full", "num_layers": 2, "conv_width": 1},
    {"block": "liquid", "coupling": "diagonal", "head": "adaptive", "adaptive_cutoffs": (9,)},
]
IDS = ["plain full", "plain synaptic", "plain cfc", "liquid diagonal", "liquid full", "adaptive"]
every_shape = pytest.mark.parametrize("more", SHAPES, ids=IDS)


def network(more: dict | None = None, **changes: object) -> LiquidTimeConstantNetwork:
    torch.manual_seed(0)
    return LiquidTimeConstantNetwork(VOCABULARY, 12, VOCABULARY, 2, 0.5, **{**(more or {}), **changes}).eval()


def text(batch: int = 3, tokens: int = 11) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(1))


def assert_same_state(ours: LiquidState, theirs: LiquidState) -> None:
    assert ours.tensors().keys() == theirs.tensors().keys()
    for name, tensor in ours.tensors().items():
        torch.testing.assert_close(tensor, theirs.tensors()[name], msg=name)


@pytest.mark.parametrize("solver", ["SemiImplicit", "Explicit", "RungeKutta"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_seven_arguments_work_by_position_and_by_name(solver: str, adaptive: bool) -> None:
    torch.manual_seed(0)
    by_position = LiquidTimeConstantNetwork(VOCABULARY, 16, VOCABULARY, 5, 0.01, solver, adaptive)
    torch.manual_seed(0)
    by_name = LiquidTimeConstantNetwork(
        input_size=VOCABULARY,
        hidden_size=16,
        output_size=VOCABULARY,
        steps=5,
        step_size=0.01,
        solver=solver,
        adaptive=adaptive,
    )
    logits = by_position(text()).logits
    assert logits.shape == (3, 11, VOCABULARY)
    torch.testing.assert_close(logits, by_name(text()).logits, rtol=0, atol=0)
    assert [type(child) for child in by_position.children() if not isinstance(child, LockedDropout | nn.Identity)] == [
        nn.Embedding,
        nn.ModuleList,
        type(by_position.lm_head),
    ]


def test_input_and_output_vocabularies_may_differ() -> None:
    assert LiquidTimeConstantNetwork(VOCABULARY, 8, 5, 1, 1.0)(text()).logits.shape == (3, 11, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 8, 1, 1.0), "input_size"),
        ((5, 8, 8, 0, 1.0), "steps"),
        ((5, 8, 8, 1, 0.0), "step_size"),
        ((5, 8, 8, 1, 1.0, "Euler"), "solver"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LiquidTimeConstantNetwork(*arguments)
    with pytest.raises(UsageError, match="'num_layers'"):
        LiquidTimeConstantNetwork(5, num_layer=2)


@every_shape
def test_whole_equals_chunks_equals_single_tokens(more: dict) -> None:
    model, ids = network(more), text()
    whole = model(ids)
    for cuts in ([4, 7], [1] * 11):
        state, logits = None, []
        for piece in ids.split(cuts, dim=1):
            output = model(piece, state=state)
            state = output.state
            logits.append(output.logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits)
        assert state is not None
        assert_same_state(state, whole.state)


@every_shape
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_moves_nothing(more: dict, side: str) -> None:
    model, ids = network(more), text()
    before = model(text(3, 5)).state
    places = {"left": [3, 0, 0], "right": [0, 0, 2], "middle": [0, 4, 0]}[side]
    pad = [torch.full((3, n), 7) for n in places]
    padded = torch.cat([pad[0], ids[:, :4], pad[1], ids[:, 4:], pad[2]], dim=1)
    mask = torch.cat([0 * pad[0], 1 + 0 * ids[:, :4], 0 * pad[1], 1 + 0 * ids[:, 4:], 0 * pad[2]], dim=1)
    real = mask[0].bool()
    expected, got = model(ids, state=before), model(padded, attention_mask=mask, state=before)
    torch.testing.assert_close(got.logits[:, real], expected.logits)
    assert_same_state(got.state, expected.state)


@every_shape
def test_a_batch_holds_sequences_of_different_lengths(more: dict) -> None:
    model, ids = network(more), text(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    together = model(ids, attention_mask=mask)
    alone = model(ids[:1, 5:])
    torch.testing.assert_close(together.logits[:1, 5:], alone.logits)


@every_shape
def test_elapsed_time_reaches_every_layer(more: dict) -> None:
    model, ids = network(more), text()
    times = torch.rand(3, 11, generator=torch.Generator().manual_seed(2)) * 3
    output = model(ids, elapsed=times)
    assert not torch.allclose(output.logits, model(ids).logits)
    singles = [model(ids[b : b + 1], elapsed=times[b : b + 1]).logits for b in range(3)]
    torch.testing.assert_close(output.logits, torch.cat(singles))
    torch.testing.assert_close(model(ids, elapsed=torch.tensor(2.0)).logits, model(ids, elapsed=2.0).logits)


@every_shape
def test_no_request_changes_a_later_one(more: dict) -> None:
    model, ids = network(more), text()
    first = model(ids).logits
    model(text(5, 30))
    torch.testing.assert_close(model(ids).logits, first, rtol=0, atol=0)


@every_shape
def test_every_parameter_learns(more: dict) -> None:
    model, ids = network(more).train(), text(8, 20)
    model(ids, labels=ids).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not still


@every_shape
def test_the_loss_is_that_of_the_next_token(more: dict) -> None:
    model, ids = network(more), text()
    logits = model(ids).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=ids).loss, expected)
    shifted = model(ids[:, :-1], shift_labels=ids[:, 1:])
    torch.testing.assert_close(shifted.loss, expected)
    torch.testing.assert_close(shifted.logits, logits[:, :-1])
    assert model(ids[:, :-1], shift_labels=ids[:, 1:], skip_logits=True).logits is None
    targets = ids[:, 1:].clone()
    targets[0] = -100
    kept = nn.functional.cross_entropy(logits[1:, :-1].flatten(0, 1), ids[1:, 1:].flatten())
    torch.testing.assert_close(model(ids[:, :-1], shift_labels=targets).loss, kept)


@every_shape
def test_states_stay_float32_under_autocast(more: dict) -> None:
    model, ids = network(more), text()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids)
    assert all(tensor.dtype == torch.float32 for tensor in output.state.neurons)
    torch.testing.assert_close(output.logits.float(), model(ids).logits, rtol=0.1, atol=0.1)


@every_shape
def test_weights_may_be_kept_in_bfloat16(more: dict) -> None:
    ids = text()
    expected = network(more)(ids, labels=ids)
    model = network(more).to(torch.bfloat16)
    output = model(ids, labels=ids)
    assert all(tensor.dtype == torch.float32 for tensor in output.state.neurons)
    torch.testing.assert_close(output.logits.float(), expected.logits, rtol=0.1, atol=0.1)
    torch.testing.assert_close(output.loss.float(), expected.loss, rtol=0.02, atol=0.02)
    model.train()(ids, shift_labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())
    assert [tau.shape[:2] for tau in model.time_constants(ids)] == [(3, 11)] * model.settings.num_layers


@every_shape
def test_time_constants_are_those_of_every_neuron(more: dict) -> None:
    model = network(more)
    layers = model.time_constants(text())
    assert [tuple(tau.shape) for tau in layers] == [(3, 11, model.settings.neurons)] * model.settings.num_layers
    assert all(bool((tau > 0).all()) for tau in layers)
    assert all(float(tau.detach().std(dim=1).max()) > 0 for tau in layers), "a liquid time constant moves"


@every_shape
def test_time_constants_know_no_dropout_and_follow_state_and_elapsed_time(more: dict) -> None:
    model, ids = network(more, dropout=0.5), text()
    with torch.no_grad():  # a diagonal cell starts with time constants that do not depend on its state
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    quiet = model.time_constants(ids)
    for tau, other in zip(quiet, model.train().time_constants(ids), strict=True):
        torch.testing.assert_close(tau, other)
    # Where the time constants of a part of the text begin is where the part before it ended.
    model.eval()
    times = torch.rand(3, 11, generator=torch.Generator().manual_seed(2)) * 3
    whole = model.time_constants(ids, elapsed=times)
    assert not torch.allclose(whole[0], quiet[0])
    state = model(ids[:, :4], elapsed=times[:, :4]).state
    for tau, end in zip(whole, model.time_constants(ids[:, 4:], state, times[:, 4:]), strict=True):
        torch.testing.assert_close(tau[:, 4:], end, rtol=1e-4, atol=1e-4)


@every_shape
def test_time_constants_pass_each_layer_once(more: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = network(more), []
    for layer in model.layers:
        original = layer.cell.scan
        monkeypatch.setattr(layer.cell, "scan", lambda *a, scan=original: passes.append(1) or scan(*a))
    model.time_constants(text())
    assert len(passes) == model.settings.num_layers


def test_frozen_time_constants_do_not_move() -> None:
    (tau,) = network(adaptive=False).time_constants(text())
    torch.testing.assert_close(tau, tau[:1, :1].expand_as(tau))


@pytest.mark.parametrize(
    "mode", [{}, {"num_beams": 3}, {"do_sample": True}, {"num_return_sequences": 2, "do_sample": True}]
)
@pytest.mark.parametrize("more", [SHAPES[0], SHAPES[3]], ids=[IDS[0], IDS[3]])
def test_generate_with_a_cache_equals_generate_without(more: dict, mode: dict) -> None:
    model, ids = network(more), text()
    options = {"max_new_tokens": 8, "pad_token_id": 0, "do_sample": False} | mode
    torch.manual_seed(3)
    cached = model.generate(ids, **options)
    torch.manual_seed(3)
    torch.testing.assert_close(cached, model.generate(ids, use_cache=False, **options))


def test_generate_reads_a_left_padded_batch_and_continues_a_state() -> None:
    model, ids = network(SHAPES[3]), text(2, 6)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(ids[:1, 2:], **options)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    together = model.generate(ids, attention_mask=mask, **options)
    torch.testing.assert_close(together[:1, 2:], alone)
    state = model(ids[:, :3]).state
    continued = model.generate(ids[:, 3:], state=state, **options)
    torch.testing.assert_close(continued[:, 3:], model.generate(ids, **options)[:, 6:])


@every_shape
def test_save_and_load_give_the_same_network(more: dict, tmp_path: Path) -> None:
    model, ids = network(more), text()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LTCConfig)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True)
    assert isinstance(again, LiquidTimeConstantNetwork)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert again.settings == model.settings


def test_tied_embeddings_are_one_matrix() -> None:
    model = network(SHAPES[3])
    assert model.lm_head.projection.weight is model.embed_tokens.weight


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        model, ids = network(SHAPES[3]).train(), text()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), r"expected \(B, T\)"),
        (torch.tensor([[VOCABULARY]]), f"expected 0 to {VOCABULARY - 1}, got {VOCABULARY}"),
        (torch.tensor([[-1]]), "got -1"),
    ],
)
def test_bad_ids_are_rejected(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        network()(ids)


def test_a_mask_of_another_shape_is_rejected() -> None:
    message = "mask: expected torch.bool of (2, 5), got torch.bool of (2, 4)"
    with pytest.raises(UsageError, match=re.escape(message)):
        network()(text(2, 5), attention_mask=torch.zeros(2, 4, dtype=torch.long))


def test_arguments_are_checked_once_not_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = network(SHAPES[3]), text()
    expected = model(ids, elapsed=2.0).logits

    def never(*_: object) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr("ltc_textgen.layers.base.broadcast_elapsed", never)
    monkeypatch.setattr("ltc_textgen.layers.base.LiquidLayer._check", never)
    monkeypatch.setattr(torch, "aminmax", never)
    torch.testing.assert_close(model(ids, elapsed=2.0).logits, expected)  # a changed method takes the reference path
    with pytest.raises(AssertionError, match="checked again"):
        model.layers[0].cell(torch.zeros(1, 1, 12))


def test_the_public_names_are_there_and_load_when_asked_for() -> None:
    for name in ltc_textgen.__all__:
        assert getattr(ltc_textgen, name) is not None, name
    assert set(ltc_textgen.__all__) <= set(dir(ltc_textgen))
    with pytest.raises(AttributeError, match="'nothing'"):
        ltc_textgen.nothing  # noqa: B018


@pytest.mark.parametrize("coupling", list(Coupling))
def test_settings_build_the_network_they_describe(coupling: Coupling) -> None:
    settings = ModelConfig(input_size=9, hidden_size=6, coupling=coupling, steps=2, step_size=0.25)
    model = LiquidTimeConstantNetwork.from_settings(settings)
    assert model.settings == settings
    cell = model.layers[0].cell
    assert (cell.steps, cell.step_size, cell.hidden_size) == (2, 0.25, 6)
