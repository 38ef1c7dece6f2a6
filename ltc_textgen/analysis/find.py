"""Which neuron follows a property of the text: a search with a baseline of what chance reaches.

Every neuron is scored on the first half of the text by its AUC: the probability that its value at a token with the
property lies above that at a token without. The best is then scored on the second half, which did not choose it.
With thousands of neurons some correlate with any property, and both a neuron and a property drift with the text; so the
whole search is repeated with the labels shifted circularly by random distances, which keeps their autocorrelation and
removes their relation to the text. The AUC of the best neuron there is the baseline.

This is correlation. Whether the network uses the neuron is a question for `ablate`.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ltc_textgen.analysis.neurons import Neuron
from ltc_textgen.analysis.trace import Trace
from ltc_textgen.data.batches import release_pages
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.shapes import Float, Tensor

NEURONS_AT_ONCE = 64
FEWEST = 8
"""Tokens with, and without, the property that each half of the text must have."""


@dataclass(frozen=True)
class Finding:
    """The neurons that follow a label best, and the baseline of shifted labels.

    Args:
        neurons: Best first, by the first half of the text.
        auc: Of each, on the second half: 1 if it separates the label perfectly, 0.5 if not at all, below 0.5 if its
            direction turned around.
        sign: +1 if a neuron is high where the label is, -1 if it is low.
        baseline: AUC on the second half of the best neuron of each search with shifted labels.
        feature: What was searched: "state", "tau" or "log_tau".
        threshold: Above which a label counts as 1; the median of its first half where it is not 0 and 1.
        positive: Fraction of tokens with the label.
    """

    neurons: list[Neuron]
    auc: Float[np.ndarray, " N"]
    sign: Float[np.ndarray, " N"]
    baseline: Float[np.ndarray, " B"]
    feature: str
    threshold: float
    positive: float

    @property
    def best(self) -> float:
        """AUC of the first neuron on the second half."""
        return float(self.auc[0])

    @property
    def p_value(self) -> float:
        """Probability of an AUC as large under shifted labels: (1 + those that reach it) / (1 + shifts)."""
        return float((1 + (self.baseline >= self.best).sum()) / (1 + len(self.baseline)))


def find(
    trace: Trace,
    label: Float[np.ndarray, " T"],
    feature: str = "state",
    *,
    count: int = 10,
    shifts: int = 99,
    seed: int = 0,
) -> Finding:
    """The neurons of a network that follow a label best.

    Args:
        trace: Of a text.
        label: Of every token: 0 and 1, or numbers, which are cut at their median; NaN where it does not apply.
        feature: "state", "tau" or "log_tau".
        count: Neurons to return.
        shifts: Searches with shifted labels; the smallest p-value is 1 / (shifts + 1).
        seed: Of the distances of the shifts.

    Raises:
        UsageError: If the label has another length, or the feature is unknown.
        DataError: If a half of the text has fewer than `FEWEST` tokens with, or without, the property.
    """
    if label.shape != (len(trace),):
        raise UsageError(f"label: expected one value for each of {len(trace)} tokens, got {label.shape}")
    half = len(trace) // 2
    wanted, threshold = _binary(np.asarray(label, dtype=np.float64), half)
    halves = [_Half(wanted[:half], shifts, seed), _Half(wanted[half : 2 * half], shifts, seed + 1)]
    names = [Neuron(layer, index) for layer, size in enumerate(trace.sizes) for index in range(size)]
    parts = []
    for layer in range(len(trace.sizes)):
        values = trace.features(layer, feature)
        for at in range(0, values.shape[1], NEURONS_AT_ONCE):
            columns = slice(at, at + NEURONS_AT_ONCE)
            first, second = (np.ascontiguousarray(values[rows, columns]) for rows in _rows(half))
            parts.append(torch.stack([halves[0].auc(first), halves[1].auc(second)]))
        release_pages(values)
    first, second = torch.cat(parts, dim=2)  # (1 + shifts, N) each
    sign = torch.where(first >= 0.5, 1.0, -1.0)
    order = (first - 0.5).abs().argsort(dim=1, descending=True, stable=True)
    held_out = (0.5 + sign * (second - 0.5)).gather(1, order)
    best = order[0, :count]
    return Finding(
        [names[index] for index in best.tolist()],
        held_out[0, :count].numpy(),
        sign[0, best].numpy(),
        held_out[1:, 0].numpy(),
        feature,
        threshold,
        float(np.nanmean(np.where(np.isnan(wanted), np.nan, wanted))),
    )


def _rows(half: int) -> tuple[slice, slice]:
    return slice(0, half), slice(half, 2 * half)


def _binary(label: np.ndarray, half: int) -> tuple[np.ndarray, float]:
    """Labels of 0, 1 and NaN, and the threshold."""
    known = label[:half][np.isfinite(label[:half])]
    if not len(known):
        raise DataError("find: the label applies to no token of the first half of the text")
    threshold = 0.5 if set(np.unique(known)) <= {0.0, 1.0} else float(np.median(known))
    return np.where(np.isnan(label), np.nan, label > threshold), threshold


class _Half:
    """One half of the text: the label and its shifts, against which neurons are ranked.

    Args:
        wanted: 1, 0 or NaN for every token.
        shifts: How many shifted copies.
        seed: Of their distances, from a tenth of the half on.
    """

    def __init__(self, wanted: np.ndarray, shifts: int, seed: int) -> None:
        self._kept = np.flatnonzero(np.isfinite(wanted))
        kept = wanted[self._kept]
        ones, size = int(kept.sum()), len(kept)
        if min(ones, size - ones) < FEWEST:
            raise DataError(
                f"find: half of the text has {ones} tokens with the label and {size - ones} without; "
                f"at least {FEWEST} of each are needed: give a longer text"
            )
        nearest = max(1, size // 10)
        distances = np.random.default_rng(seed).integers(nearest, max(nearest + 1, size - nearest), shifts)
        rows = [kept, *(np.roll(kept, distance) for distance in distances)]
        self._labels, self._ones, self._zeros = torch.tensor(np.stack(rows)), ones, size - ones

    def auc(self, values: Float[np.ndarray, "T N"]) -> Float[Tensor, "B N"]:
        """AUC of neurons for the label (row 0) and its shifts: the Mann-Whitney statistic of their ranks."""
        ranks = average_ranks(torch.from_numpy(values[self._kept]))
        above = self._labels @ ranks - self._ones * (self._ones + 1) / 2
        return above / (self._ones * self._zeros)


def average_ranks(values: Float[Tensor, "T N"]) -> Float[Tensor, "T N"]:
    """Ranks from 1 within each column, float64; equal values get the mean of their ranks.

    >>> average_ranks(torch.tensor([[3.0], [1.0], [3.0]])).flatten().tolist()
    [2.5, 1.0, 2.5]
    """
    ordered, order = values.sort(dim=0)
    position = torch.arange(len(values))[:, None].expand_as(order)
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(new, position, 0).cummax(dim=0).values
    ends = torch.ones_like(new)
    ends[:-1] = new[1:]
    last = torch.where(ends, position, len(values)).flip(0).cummin(dim=0).values.flip(0)
    return torch.empty_like(values, dtype=torch.float64).scatter_(0, order, (first + last).double() / 2 + 1)
