"""How long neurons keep what they have read, by their own equation: the distribution of time constants.

A difference in a neuron's state falls as exp(-t / tau): its half-life is ln 2 tau. Language has many time scales:
if the information between words falls as a power of their distance, a mixture of exponentials that matches it has
time constants with an inverse-gamma density.

Source:
    Mahto, Vo, Turek, Huth 2021, arXiv:2009.12727, section 3.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ltc_textgen.analysis.trace import Trace
from ltc_textgen.data.batches import release_pages
from ltc_textgen.errors import DataError
from ltc_textgen.shapes import Float

MOST_NEWTON_STEPS = 50
MOST_ROWS = 8192
"""Tokens, evenly spread, from which a neuron's median and spread are taken."""


@dataclass(frozen=True)
class Fit:
    """A distribution fitted by maximum likelihood.

    Args:
        shape: alpha of the inverse gamma; the standard deviation of log tau of the log-normal.
        scale: beta of the inverse gamma, in tokens; the median of the log-normal, in tokens.
        log_likelihood: Mean log density of a time constant, in nats; larger is better. Both kinds have two
            parameters, so their likelihoods compare without a penalty.
        distance: Largest difference between the fitted and the empirical distribution function (Kolmogorov-Smirnov).
    """

    shape: float
    scale: float
    log_likelihood: float
    distance: float


@dataclass(frozen=True)
class HalfLives:
    """Time constants of the neurons of a network on a text, in tokens.

    Args:
        median: Of every neuron over the text, one array per layer.
        spread: Interquartile range of log tau of every neuron over the text, one array per layer: 0 if it is frozen,
            0.7 if the time constant doubles between its quartiles.
        inverse_gamma: Fit to the finite medians of all neurons.
        log_normal: The same.
        infinite: Neurons whose median is not finite; they are in no fit.
    """

    median: tuple[Float[np.ndarray, " N"], ...]
    spread: tuple[Float[np.ndarray, " N"], ...]
    inverse_gamma: Fit
    log_normal: Fit
    infinite: int

    @property
    def half_life(self) -> tuple[Float[np.ndarray, " N"], ...]:
        """Half-life in tokens: ln 2 times the median time constant."""
        return tuple(np.log(2) * median for median in self.median)


def half_lives(trace: Trace) -> HalfLives:
    """Median and spread of every neuron's time constant, and the distribution of the medians over neurons.

    Raises:
        DataError: If fewer than two neurons have a finite time constant, or all have the same.
    """
    rows = slice(None, None, max(1, -(-len(trace) // MOST_ROWS)))
    medians, spreads = [], []
    for layer in trace.tau:
        log_tau = np.log(np.asarray(layer[rows], dtype=np.float64))
        with np.errstate(invalid="ignore"):  # the difference of two infinities
            low, middle, high = np.quantile(log_tau, (0.25, 0.5, 0.75), axis=0, method="lower")
            medians.append(np.exp(middle))
            spreads.append(high - low)
        release_pages(layer)
    every = np.concatenate(medians)
    finite = every[np.isfinite(every) & (every > 0)]
    return HalfLives(
        tuple(medians), tuple(spreads), fit_inverse_gamma(finite), fit_log_normal(finite), len(every) - len(finite)
    )


def fit_log_normal(tau: Float[np.ndarray, " N"]) -> Fit:
    """The log-normal distribution of largest likelihood.

    Raises:
        DataError: If there are fewer than two values, or all are equal.
    """
    logs = np.log(_spread(tau))
    mean, deviation = float(logs.mean()), float(logs.std())
    density = -logs - np.log(deviation) - 0.5 * np.log(2 * np.pi) - 0.5 * ((logs - mean) / deviation) ** 2
    below = torch.special.ndtr(torch.from_numpy((logs - mean) / deviation)).numpy()
    return Fit(deviation, float(np.exp(mean)), float(density.mean()), _distance(below))


def fit_inverse_gamma(tau: Float[np.ndarray, " N"]) -> Fit:
    """The inverse-gamma distribution of largest likelihood: 1 / tau is gamma-distributed.

        p(tau) = beta^alpha / Gamma(alpha) tau^(-alpha - 1) exp(-beta / tau)

    With y = 1 / tau, the likelihood is largest where log alpha - digamma(alpha) = log mean(y) - mean(log y), found by
    Newton's method from Minka's starting point, and beta = alpha / mean(y).

    Raises:
        DataError: If there are fewer than two values, or all are equal.
    """
    rate = torch.from_numpy(1 / _spread(tau))
    gap = rate.mean().log() - rate.log().mean()
    alpha = (3 - gap + ((gap - 3) ** 2 + 24 * gap).sqrt()) / (12 * gap)
    for _ in range(MOST_NEWTON_STEPS):
        error = alpha.log() - torch.digamma(alpha) - gap
        change = error / (1 / alpha - torch.polygamma(1, alpha))
        alpha = torch.where(change < alpha, alpha - change, alpha / 2)
        if abs(change) < 1e-12 * alpha:
            break
    beta = alpha / rate.mean()
    density = alpha * beta.log() - torch.lgamma(alpha) + (alpha + 1) * rate.log() - beta * rate
    below = torch.special.gammaincc(alpha.expand_as(rate), beta * rate).numpy()
    return Fit(float(alpha), float(beta), float(density.mean()), _distance(below))


def _spread(tau: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    tau = np.sort(np.asarray(tau, dtype=np.float64))
    if len(tau) < 2 or np.log(tau[-1] / tau[0]) < 1e-9:
        raise DataError("half-lives: expected at least two neurons with different, finite time constants")
    return tau


def _distance(below: Float[np.ndarray, " N"]) -> float:
    """Of a distribution function at the sorted values to their empirical one."""
    steps = np.arange(len(below) + 1) / len(below)
    return float(max((steps[1:] - below).max(), (below - steps[:-1]).max()))
