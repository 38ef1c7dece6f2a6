import numpy as np
import pytest
import torch

from ltc_textgen.config import ModelConfig
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.evaluation import score_tokens
from ltc_textgen.evaluation.scoring import score_crops
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork


def make_model():
    torch.manual_seed(0)
    return LiquidTimeConstantNetwork.from_settings(ModelConfig(input_size=30, hidden_size=16, coupling="diagonal"))


def test_crops_are_windows_from_rest():
    model, tokens = make_model(), np.random.default_rng(0).integers(0, 30, 40)
    starts = torch.randint(40 - 8, (3,), generator=torch.Generator().manual_seed(5)).tolist()
    means = [score_tokens(model, tokens[at : at + 9])[0] / 8 for at in starts]
    found = score_crops(model, tokens, 3, 8, seed=5)
    assert found.nll_per_token == pytest.approx(np.mean(means))
    assert found.standard_error == pytest.approx(np.std(means, ddof=1) / 3**0.5)
    assert (found.crops, found.window, found.seed) == (3, 8, 5)
    assert score_crops(model, tokens, 3, 8, seed=6) != found


def test_a_crop_may_be_the_whole_text():
    model, tokens = make_model(), np.arange(9)
    whole = score_tokens(model, tokens)[0] / 8
    found = score_crops(model, tokens, 2, 8)
    assert (found.nll_per_token, found.standard_error) == (pytest.approx(whole), pytest.approx(0.0, abs=1e-12))
    assert score_crops(model, tokens, 1, 8).standard_error is None


def test_the_estimate_tends_to_the_loss_in_windows():
    model, tokens = make_model(), np.random.default_rng(0).integers(0, 30, 600)
    nll, count = score_tokens(model, tokens, window=6)
    found = score_crops(model, tokens, 150, 6)
    assert abs(found.nll_per_token - nll / count) < 4 * found.standard_error


def test_invalid_arguments_are_rejected():
    with pytest.raises(DataError, match="9 tokens"):
        score_crops(make_model(), np.arange(9), 2, 9)
    with pytest.raises(UsageError, match="0 and 3"):
        score_crops(make_model(), np.arange(9), 0, 3)
