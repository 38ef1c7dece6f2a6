"""How long neurons remember, by experiment: one segment is read after two different contexts.

Only the segment is common to both readings. How fast the states of the two readings converge is the effective timescale
of each neuron, whatever its equation says: a neuron with a short time constant that receives input from a slow one is
slow too.

Source:
    Chien, Zhang, Honey 2021, arXiv:2012.06717.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ltc_textgen.analysis.find import average_ranks
from ltc_textgen.errors import DataError
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class EffectiveTimescale:
    """How fast the influence of the context on each neuron decays.

    Args:
        half_distance: Tokens of the common segment after which the two states of a neuron differ by half of what they
            did before it, on average over segments, one array per layer; inf if they never do.
        curve: Mean absolute difference before the segment and after each of its tokens, one array (1 + L, N) per layer.
        tau: Median time constant of each neuron while the segments were read, one array per layer.
        correlation: Spearman's rank correlation of `half_distance` and `tau` over neurons, one per layer; NaN where
            one of them does not vary.
    """

    half_distance: tuple[Float[np.ndarray, " N"], ...]
    curve: tuple[Float[np.ndarray, "T N"], ...]
    tau: tuple[Float[np.ndarray, " N"], ...]
    correlation: tuple[float, ...]


def effective_timescale(
    model: LiquidNetwork,
    text: str | Tensor,
    tokenizer: Any = None,
    *,
    segments: int = 64,
    length: int = 256,
    context: int = 256,
    seed: int = 0,
) -> EffectiveTimescale:
    """Read segments of a text after their own context and after one from elsewhere, and compare the states.

    Args:
        model: Network, in any mode.
        text: A text, or token ids (1, T).
        tokenizer: That of the run directory if None.
        segments: How many, at random places.
        length: Tokens of each.
        context: Tokens before it, after a reset.
        seed: Of the places.

    Raises:
        DataError: If the text is shorter than a context, a segment and another context.
        UsageError: If the text has no tokens, or there is no tokenizer.
    """
    ids = model.token_ids(text, tokenizer)[0]
    if len(ids) < 2 * context + length or min(segments, length, context) < 1:
        raise DataError(
            f"effective timescale: the text has {len(ids)} tokens, {2 * context + length} are needed: "
            "give a longer text, or shorter segments and contexts"
        )
    own, other, common = _places(ids, segments, length, context, seed)
    with evaluating(model), torch.no_grad():
        starts = [model.advance(ids_before)[1] for ids_before in (own, other)]
        (_, first, _), (_, second, _) = (model.observe(common, state) for state in starts)
    curves, halves, taus = [], [], []
    for number, (a, b) in enumerate(zip(first, second, strict=True)):
        before = (starts[0].neurons[number] - starts[1].neurons[number]).abs().mean(0, keepdim=True)
        curves.append(torch.cat([before, (a.states - b.states).abs().mean(0)]).double().cpu().numpy())
        halves.append(half_distance(curves[-1]))
        taus.append(a.tau.float().flatten(0, 1).median(dim=0).values.double().cpu().numpy())
    correlation = tuple(spearman(half, tau) for half, tau in zip(halves, taus, strict=True))
    return EffectiveTimescale(tuple(halves), tuple(curves), tuple(taus), correlation)


def half_distance(curve: Float[np.ndarray, "T N"]) -> Float[np.ndarray, " N"]:
    """Where each column falls to half of its first value for good, interpolated between tokens as an exponential.

    >>> half_distance(np.exp(-np.arange(9.0) / 2)[:, None]).round(3).tolist()  # 2 ln 2
    [1.386]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log(curve / curve[0]) - np.log(0.5)
    found = np.full(curve.shape[1], np.inf)
    for neuron in range(curve.shape[1]):
        above = np.flatnonzero(level[:, neuron] > 0)
        if curve[0, neuron] == 0 or not len(above):  # they never differed
            found[neuron] = 0.0
        elif (last := above[-1]) + 1 < len(curve):
            high, low = level[last, neuron], max(level[last + 1, neuron], -700.0)
            found[neuron] = last + high / (high - low)
    return found


def spearman(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> float:
    """Rank correlation of two samples; infinite values rank last; NaN if one does not vary.

    >>> spearman(np.array([1.0, 2.0, np.inf]), np.array([3.0, 5.0, 9.0]))
    1.0
    """
    ranks = average_ranks(torch.from_numpy(np.stack([a, b], axis=1))).numpy()
    ranks -= ranks.mean(axis=0)
    norm = float(np.sqrt((ranks**2).sum(axis=0).prod()))
    return round(float(ranks.prod(axis=1).sum()) / norm, 12) if norm else float("nan")


def _places(
    ids: Int[Tensor, " T"], segments: int, length: int, context: int, seed: int
) -> tuple[Int[Tensor, "B _"], Int[Tensor, "B _"], Int[Tensor, "B _"]]:
    """Contexts of segments, contexts from elsewhere, and the segments."""
    draw = np.random.default_rng(seed)
    starts = draw.integers(context, len(ids) - length - context + 1, segments)
    # Elsewhere: anywhere else on the circle of possible contexts, so that it does not overlap the own one.
    spots = len(ids) - context + 1
    far = (starts - context + draw.integers(context, max(context + 1, spots - context), segments)) % spots
    rows = [_windows(ids, at, size) for at, size in ((starts - context, context), (far, context), (starts, length))]
    return rows[0], rows[1], rows[2]


def _windows(ids: Int[Tensor, " T"], starts: np.ndarray, length: int) -> Int[Tensor, "B _"]:
    index = torch.from_numpy(starts)[:, None] + torch.arange(length)
    return ids[index.to(ids.device)]
