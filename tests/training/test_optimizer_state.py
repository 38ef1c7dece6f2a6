"""The optimizer's part of a checkpoint is validated before the compiled update may use it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ltc_textgen.errors import ArtifactError
from ltc_textgen.shapes import Tensor
from ltc_textgen.training.checkpoint import load_optimizer_tensors, optimizer_tensors

WEIGHT = "weight/exp_avg"


def stepped_optimizer() -> torch.optim.AdamW:
    """AdamW after one step of a small layer, with the names that a checkpoint needs."""
    layer = nn.Linear(3, 2)
    names, params = zip(*layer.named_parameters(), strict=True)
    optimizer = torch.optim.AdamW([{"params": list(params), "names": list(names)}])
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_moments_come_back_to_the_last_bit() -> None:
    saved, optimizer = optimizer_tensors(stepped_optimizer()), stepped_optimizer()
    load_optimizer_tensors(optimizer, saved)
    assert all(torch.equal(value, saved[key]) for key, value in optimizer_tensors(optimizer).items())


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (WEIGHT, lambda moment: moment[:1]),
        (WEIGHT, lambda moment: moment.flatten()),
        (WEIGHT, lambda moment: moment.double()),
        (WEIGHT, lambda moment: moment * torch.nan),
        ("bias/exp_avg_sq", lambda moment: moment - 1),
        ("bias/step", lambda step: step.reshape(1)),
        ("bias/step", lambda step: step.long()),
        ("bias/step", lambda step: -step),
    ],
)
def test_a_wrong_moment_is_rejected_and_changes_nothing(key: str, change: Callable[[Tensor], Tensor]) -> None:
    optimizer = stepped_optimizer()
    before = optimizer_tensors(optimizer)
    with pytest.raises(ArtifactError, match=key):
        load_optimizer_tensors(optimizer, before | {key: change(before[key])})
    assert all(torch.equal(value, before[name]) for name, value in optimizer_tensors(optimizer).items())


@pytest.mark.parametrize("key", ["weight/bogus", "absent/step"])
def test_an_unknown_name_is_rejected(key: str) -> None:
    optimizer = stepped_optimizer()
    with pytest.raises(ArtifactError, match=key.split("/", maxsplit=1)[0]):
        load_optimizer_tensors(optimizer, optimizer_tensors(optimizer) | {key: torch.ones(())})


def test_a_missing_moment_is_rejected() -> None:
    optimizer = stepped_optimizer()
    tensors = optimizer_tensors(optimizer)
    del tensors["bias/step"]
    with pytest.raises(ArtifactError, match="bias"):
        load_optimizer_tensors(optimizer, tensors)
