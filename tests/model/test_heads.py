"""Output layers where there is nothing to learn, and how an adaptive one splits the vocabulary."""

import pytest
import torch

from ltc_textgen.config import ModelConfig
from ltc_textgen.model.heads import IGNORED, build_head, default_cutoffs


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_of_a_large_vocabulary_in_parts(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = build_head(ModelConfig(input_size=300, hidden_size=16)).to(dtype)
    hidden = torch.randn(5, 7, 16, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 300, (5, 7))
    targets[1, 2:4] = IGNORED
    leaves = (hidden, head.projection.weight, head.projection.bias)
    whole = head.loss(hidden, targets)
    expected = torch.autograd.grad(3 * whole.sum(), leaves)
    monkeypatch.setattr("ltc_textgen.kernels.head_loss.AT_ONCE", 4 * 300)  # four rows at a time, of 35
    torch.testing.assert_close(head.loss(hidden, targets), whole)
    total = head.total_loss(hidden, targets)
    torch.testing.assert_close(total, whole.sum(), check_dtype=False)
    torch.testing.assert_close(torch.autograd.grad(3 * total, leaves), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(head.total_loss(hidden, targets), total)


def test_no_more_logits_at_a_time_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltc_textgen.kernels.head_loss.AT_ONCE", 1000)
    sizes, logsumexp = [], torch.logsumexp
    monkeypatch.setattr(torch, "logsumexp", lambda x, *a, **k: (sizes.append(x.numel()), logsumexp(x, *a, **k))[1])
    head = build_head(ModelConfig(input_size=300, hidden_size=16))
    head.total_loss(torch.randn(10, 16), torch.randint(0, 300, (10,))).backward()
    assert sizes == [900, 900, 900, 300]


def test_loss_in_parts_under_autocast() -> None:
    torch.manual_seed(1)
    head = build_head(ModelConfig(input_size=3000, hidden_size=16))
    hidden, targets = torch.randn(2048, 16, requires_grad=True), torch.randint(0, 3000, (2048,))
    expected = torch.autograd.grad(head.total_loss(hidden, targets), hidden)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = head.total_loss(hidden, targets)
    assert total.dtype == torch.float32
    (found,) = torch.autograd.grad(total, hidden)
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 0.02


def test_parts_are_added_up_in_float32() -> None:
    torch.manual_seed(2)
    head = build_head(ModelConfig(input_size=3000, hidden_size=16))
    rounded = build_head(ModelConfig(input_size=3000, hidden_size=16)).to(torch.bfloat16)
    hidden, targets = torch.randn(2048, 16, dtype=torch.bfloat16), torch.randint(0, 30, (2048,))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        rounded.projection.weight.copy_(head.projection.weight)
        head.projection.weight.copy_(rounded.projection.weight)
        rounded.projection.bias.copy_(head.projection.bias)
        head.projection.bias.copy_(rounded.projection.bias)
        patch.setattr("ltc_textgen.kernels.head_loss.AT_ONCE", 4 * 3000)
        with torch.enable_grad():
            rounded.total_loss(hidden, targets).backward()
            head.total_loss(hidden.float(), targets).backward()
    for ours, exact in zip(rounded.parameters(), head.parameters(), strict=True):
        assert ours.grad.dtype == torch.bfloat16
        assert (ours.grad - exact.grad).norm() / exact.grad.norm() < 0.01


def test_no_gradient_is_made_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    head = build_head(ModelConfig(input_size=300, hidden_size=16))
    hidden, targets = torch.randn(10, 16, requires_grad=True), torch.randint(0, 300, (10,))
    monkeypatch.setattr("ltc_textgen.kernels.head_loss.AT_ONCE", 1000)
    made = head.total_loss(hidden, targets)
    calls: list[int] = []
    monkeypatch.setattr("ltc_textgen.model.heads.chunked_loss", lambda *_: calls.append(1) or made)
    with torch.no_grad():
        torch.testing.assert_close(head.total_loss(hidden, targets), made.detach())
    handle = head.projection.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(head.total_loss(hidden, targets), made)
    assert not calls
    handle.remove()
    head.total_loss(hidden, targets)
    assert calls
