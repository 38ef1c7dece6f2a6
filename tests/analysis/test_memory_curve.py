"""The loss with a reset k tokens ago."""

import numpy as np
import pytest
import torch

from ltc_textgen.analysis import memory_curve, trace
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.model.network import LiquidNetwork


def test_all_of_the_past_gives_the_plain_loss(every: LiquidNetwork, ids: torch.Tensor) -> None:
    curve = memory_curve(every, ids, distances=[1, 5, 28, 29, 30, 1000])
    assert curve.tokens == 29
    assert curve.whole == pytest.approx(trace(every, ids).loss, rel=1e-4)
    np.testing.assert_allclose(curve.increase[2:], 0, atol=5e-5)
    assert np.abs(curve.increase[0]) > 1e-4


@pytest.mark.slow
def test_a_distance_is_the_tokens_that_are_read(every: LiquidNetwork, ids: torch.Tensor) -> None:
    """The loss of each token by hand: from the k tokens before it, and no others."""
    k, losses = 3, []
    for token in range(1, 30):
        seen = trace(every, ids[:, max(0, token - k) : token + 1])
        losses.append(seen.surprise[-1])
    assert memory_curve(every, ids, distances=[k]).loss[0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_wrong_use(ids: torch.Tensor) -> None:
    from analysis_networks import network

    with pytest.raises(DataError):
        memory_curve(network(), ids[:, :1])
    with pytest.raises(UsageError):
        memory_curve(network(), ids, distances=[0])
