"""Planted distributions of time constants are recovered."""

import numpy as np
import pytest
import torch
from analysis_networks import made_trace, network
from scipy import stats

from ltc_textgen.analysis import half_lives, trace
from ltc_textgen.analysis.half_lives import fit_inverse_gamma, fit_log_normal
from ltc_textgen.errors import DataError

DRAWN = 20_000


def test_an_inverse_gamma_is_recovered() -> None:
    tau = stats.invgamma(0.56, scale=1.0).rvs(DRAWN, random_state=0)
    fit = fit_inverse_gamma(tau)
    assert fit.shape == pytest.approx(0.56, rel=0.03)
    assert fit.scale == pytest.approx(1.0, rel=0.05)
    assert fit.log_likelihood == pytest.approx(stats.invgamma(fit.shape, scale=fit.scale).logpdf(tau).mean())
    assert fit.distance == pytest.approx(stats.kstest(tau, stats.invgamma(fit.shape, scale=fit.scale).cdf).statistic)
    assert fit.log_likelihood > fit_log_normal(tau).log_likelihood


def test_a_log_normal_is_recovered() -> None:
    tau = stats.lognorm(1.3, scale=7.0).rvs(DRAWN, random_state=0)
    fit = fit_log_normal(tau)
    assert fit.shape == pytest.approx(1.3, rel=0.03)
    assert fit.scale == pytest.approx(7.0, rel=0.03)
    assert fit.log_likelihood == pytest.approx(stats.lognorm(fit.shape, scale=fit.scale).logpdf(tau).mean())
    assert fit.distance == pytest.approx(stats.kstest(tau, stats.lognorm(fit.shape, scale=fit.scale).cdf).statistic)
    assert fit.log_likelihood > fit_inverse_gamma(tau).log_likelihood


def test_planted_time_constants_of_a_frozen_network_are_found(ids: torch.Tensor) -> None:
    model = network("plain diagonal", adaptive=False, num_layers=1)
    (layer,) = model.stack()
    planted = torch.logspace(-1, 3, layer.cell.hidden_size)
    with torch.no_grad():
        layer.cell.log_leak.zero_()
        layer.cell.log_capacitance.copy_(planted.log())
    found = half_lives(trace(model, ids))
    np.testing.assert_allclose(found.median[0], planted, rtol=1e-5)
    np.testing.assert_allclose(found.half_life[0], planted * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(found.spread[0], 0, atol=1e-6)


def test_infinite_time_constants_are_counted_and_left_out() -> None:
    tau = np.tile([1.0, 2.0, 5.0, np.inf], (30, 1))
    found = half_lives(made_trace(["a"] * 30, np.zeros((30, 4)), tau=tau))
    assert found.infinite == 1
    assert np.isinf(found.median[0][3])
    assert found.log_normal.scale == pytest.approx(10 ** (1 / 3))


def test_equal_time_constants_have_no_distribution() -> None:
    with pytest.raises(DataError):
        half_lives(made_trace(["a"] * 30, np.zeros((30, 4))))
