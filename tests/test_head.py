"""Output layers where there is nothing to learn, and how an adaptive one splits the vocabulary."""

import pytest
import torch

from ltc_textgen.config import ModelConfig
from ltc_textgen.head import IGNORED, build_head, default_cutoffs


@pytest.mark.parametrize("kind", ["full", "adaptive"])
@pytest.mark.parametrize("targets", [[IGNORED] * 4, [IGNORED, 1, 60, IGNORED]], ids=["no target", "some targets"])
def test_targets_without_loss_can_be_differentiated(kind: str, targets: list[int]) -> None:
    torch.manual_seed(0)
    head = build_head(ModelConfig(input_size=64, hidden_size=16, head=kind))
    hidden = torch.randn(2, 2, 16, requires_grad=True)
    losses = head.loss(hidden, torch.tensor(targets).view(2, 2))
    counted = torch.tensor(targets).view(2, 2) != IGNORED
    assert losses[~counted].eq(0).all()
    assert losses[counted].gt(0).all()
    losses.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[~counted].eq(0).all()
    assert hidden.grad[counted].abs().sum(-1).gt(0).all()


@pytest.mark.parametrize(
    ("vocabulary", "cutoffs"),
    [(2, [1]), (65, [8, 21]), (16_000, [2000, 5333]), (30_522, [2000, 10_000]), (1_000_000, [2000, 10_000])],
)
def test_the_short_list_is_an_eighth_and_the_middle_ends_at_a_third(vocabulary: int, cutoffs: list[int]) -> None:
    assert default_cutoffs(vocabulary) == cutoffs
