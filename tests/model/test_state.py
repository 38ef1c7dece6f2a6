"""The state of a network: an object that forks and travels, and that only its own network takes."""

import dataclasses

import pytest
import torch

from ltc_textgen.errors import UsageError
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.model.state import LiquidState

PLAIN: dict = {}
LIQUID = {"block": "liquid", "coupling": "diagonal", "num_layers": 2, "expansion": 1.5}


def network(more: dict) -> LiquidTimeConstantNetwork:
    torch.manual_seed(0)
    return LiquidTimeConstantNetwork(23, 12, **more).eval()


def text() -> torch.Tensor:
    return torch.randint(0, 23, (3, 11), generator=torch.Generator().manual_seed(1))


def test_a_foreign_state_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"state: expected neurons 1 of \(3, 12\), got 2 of \(2, 18\)"):
        network(PLAIN)(text(), state=network(LIQUID).initial_state(2))


@pytest.mark.parametrize("more", [PLAIN, LIQUID], ids=["plain", "liquid"])
def test_a_state_with_wrong_tensors_is_rejected(more: dict) -> None:
    model, ids = network(more), text()
    good = model.initial_state(3)
    wide = dataclasses.replace(good, neurons=tuple(torch.zeros(3, 5) for _ in good.neurons))
    with pytest.raises(UsageError, match=r"state: expected neurons \d of \(3, \d+\), got \d of \(3, 5\)"):
        model.advance(ids, wide)
    conv_state = () if good.conv_state else (torch.zeros(3, 3, 12),)
    expected = "2 of \\(3, 3, 12\\), got none" if good.conv_state else "none, got 1 of \\(3, 3, 12\\)"
    with pytest.raises(UsageError, match=f"state: expected conv_state {expected}"):
        model.advance(ids, dataclasses.replace(good, conv_state=conv_state))
    if good.conv_state:
        with pytest.raises(UsageError, match=r"conv_state 2 of \(3, 3, 12\), got 2 of \(3, 2, 12\)"):
            model.advance(ids, dataclasses.replace(good, conv_state=tuple(c[:, 1:] for c in good.conv_state)))


def test_a_state_is_an_object_that_forks_and_travels() -> None:
    model, ids = network(LIQUID), text()
    state = model(ids).state
    assert state.batch_size == 3
    forked = state.select(torch.tensor([2, 2]))
    torch.testing.assert_close(forked.neurons[0][1], state.neurons[0][2])
    again = LiquidState.from_tensors(state.tensors())
    for name, tensor in state.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor, msg=name)
    assert not any(tensor.requires_grad for tensor in state.detach().tensors().values())
    assert {field.name for field in dataclasses.fields(state)} == {"neurons", "conv_state"}
