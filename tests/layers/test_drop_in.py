"""`LTC` and `CfC` with the arguments of ncps.torch: the same outputs from the same weights, and weights back."""

from typing import Any

import ncps.torch
import ncps.wirings
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.testing import assert_close

from ltc_textgen.errors import UsageError
from ltc_textgen.layers import drop_in

SAME = {"rtol": 1e-5, "atol": 1e-5}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "LTC": ("LTC", 7, {}),
    "clipped LTC": ("LTC", 7, {"implicit_param_constraints": False, "ode_unfolds": 3}),
    "LTC without mappings": ("LTC", 7, {"input_mapping": None, "output_mapping": "linear"}),
    "LTC with memory": ("LTC", 7, {"mixed_memory": True}),
    "wired LTC": ("LTC", ("AutoNCP", 12, 3), {}),
    "NCP": ("LTC", ("NCP", 5, 4, 2, 3, 2, 4, 3), {}),
    "random LTC": ("LTC", ("Random", 9, 2, 0.5), {}),
    "CfC": ("CfC", 7, {"proj_size": 2}),
    "deep CfC": ("CfC", 7, {"backbone_units": 9, "backbone_layers": 2, "activation": "silu"}),
    "CfC without backbone": ("CfC", 7, {"backbone_layers": 0, "mode": "no_gate"}),
    "pure CfC": ("CfC", 7, {"mode": "pure"}),
    "CfC with memory": ("CfC", 7, {"mixed_memory": True, "proj_size": 4}),
    "wired CfC": ("CfC", ("AutoNCP", 12, 3), {}),
    "wired CfC with memory": ("CfC", ("AutoNCP", 12, 3), {"mixed_memory": True}),
}


def pair(name: str, **more: Any) -> tuple[nn.Module, nn.Module]:
    """A layer of ncps, and ours with its weights."""
    torch.manual_seed(0)
    kind, units, arguments = CASES[name]
    made = []
    for layers, wirings in ((ncps.torch, ncps.wirings), (drop_in, drop_in)):
        wiring = units if isinstance(units, int) else getattr(wirings, units[0])(*units[1:])
        made.append(getattr(layers, kind)(3, wiring, **arguments, **more))
    theirs, ours = made
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states(theirs: Any) -> Any:
    """A state to begin from."""
    one = torch.rand(4, theirs.state_size)
    return (one, torch.rand(4, theirs.state_size)) if theirs.use_mixed else one


@pytest.mark.parametrize("name", list(CASES))
def test_loaded_weights_give_the_same_outputs(name: str) -> None:
    theirs, ours = pair(name)
    x, hx = torch.randn(4, 6, 3), states(theirs)
    for start in (None, hx):
        for got, expected in zip(ours(x, start), theirs(x, start), strict=True):
            assert_close(got, expected, **SAME)


@pytest.mark.parametrize("name", ["LTC", "wired CfC", "CfC with memory"])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_layouts_are_theirs(name: str, return_sequences: bool) -> None:
    x = torch.randn(6, 4, 3)
    theirs, ours = pair(name, batch_first=False, return_sequences=return_sequences)
    for got, expected in zip(ours(x), theirs(x), strict=True):
        assert_close(got, expected, **SAME)
    theirs, ours = pair(name, return_sequences=return_sequences)
    single = x[:, 0]
    if return_sequences:  # theirs squeezes the batch of a single sequence away only there
        assert_close(ours(single)[0], theirs(single)[0], **SAME)
    assert_close(ours(single)[1], theirs(single)[1], **SAME)


@pytest.mark.parametrize("name", list(CASES))
def test_timespans_of_a_batch_are_those_of_its_samples(name: str) -> None:
    theirs, ours = pair(name)
    x, times = torch.randn(4, 6, 3), torch.rand(4, 6) + 0.1
    together = ours(x, None, times)[0]
    assert_close(ours(x, None, times[:, :, None])[0], together)
    for row in range(4):  # alone, where those of ncps are right
        assert_close(together[row], theirs(x[row, None], None, times[row, None])[0][0], **SAME)


@pytest.mark.parametrize("name", list(CASES))
def test_weights_go_back(name: str) -> None:
    theirs, ours = pair(name)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.05)
    torch.manual_seed(5)
    again = pair(name)[0]
    again.load_state_dict(ours.ncps_state_dict(), strict=CASES[name][2].get("input_mapping", "") is not None)
    x = torch.randn(4, 6, 3)
    if "mappings" not in name:
        assert_close(again(x)[0], ours(x)[0], **SAME)
    assert set(theirs.state_dict()) <= set(ours.ncps_state_dict())


def test_weights_load_inside_a_model() -> None:
    theirs, ours = pair("wired LTC")
    old = nn.ModuleDict({"rnn": theirs, "head": nn.Linear(3, 1)})
    new = nn.ModuleDict({"rnn": ours, "head": nn.Linear(3, 1)})
    nn.init.zeros_(ours.rnn_cell.rest)
    new.load_state_dict(old.state_dict())
    x = torch.randn(2, 5, 3)
    assert_close(new["head"](new["rnn"](x)[0]), old["head"](old["rnn"](x)[0]), **SAME)
    new.load_state_dict(new.state_dict())  # and their own


@pytest.mark.parametrize("name", ["LTC", "CfC", "wired CfC with memory"])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_packed_sequences_are_read_without_padding(name: str, return_sequences: bool) -> None:
    _, ours = pair(name, return_sequences=return_sequences)
    sequences = [torch.randn(length, 3) for length in (3, 6, 1)]
    out, after = ours(pack_sequence(sequences, enforce_sorted=False))
    padded = pad_packed_sequence(out, batch_first=True)[0] if return_sequences else out
    for row, sequence in enumerate(sequences):
        alone, alone_after = ours(sequence[None])
        assert_close(padded[row, : len(sequence)] if return_sequences else padded[row], alone[0], **SAME)
        ends = zip(after, alone_after, strict=True) if isinstance(after, tuple) else [(after, alone_after)]
        for together, single in ends:
            assert_close(together[row], single[0], **SAME)


@pytest.mark.parametrize("name", ["LTC", "CfC"])
def test_a_wiring_object_of_ncps_is_taken(name: str) -> None:
    rnn = getattr(drop_in, name)(3, ncps.wirings.AutoNCP(12, 3))
    assert (rnn.state_size, rnn.output_size) == (12, 3)
    assert rnn(torch.randn(2, 5, 3))[0].shape == (2, 5, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LTC", "CfC"])
def test_the_example_of_ncps_trains(name: str) -> None:
    """Sine and cosine to a square pulse, as in their quickstart, but for Lightning."""
    torch.manual_seed(0)
    time = torch.linspace(0, 3 * torch.pi, 48)
    x = torch.stack([time.sin(), time.cos()], dim=1)[None]
    y = (2 * time).sin()[None, :, None]
    rnn = getattr(drop_in, name)(2, drop_in.AutoNCP(16, 1))
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (rnn(x)[0] - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_wrong_use_is_one_line() -> None:
    rnn = drop_in.CfC(3, 7)
    for call in (
        lambda: drop_in.CfC(3, drop_in.AutoNCP(12, 3), backbone_units=9),
        lambda: drop_in.CfC(3, 7, backbone_dropout=0.1),
        lambda: drop_in.LTC(3, 7, input_mapping="cubic"),
        lambda: drop_in.LTC(3, "many"),
        lambda: rnn(torch.randn(2, 5, 3), torch.zeros(7)),
        lambda: rnn(torch.randn(2, 5, 3), (torch.zeros(2, 7), torch.zeros(2, 7))),
        lambda: rnn(torch.randn(2, 5, 4)),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert "\n" not in str(error.value)
