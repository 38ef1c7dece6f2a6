"""From logits to the next token: penalty, temperature, filters, draw.

Order and results are those of transformers' `generate`: repetition penalty, temperature, top-k, top-p, min-p, each on
the output of the one before. A filter sets the logits that it removes to -inf and never removes the likeliest token. A
draw takes one uniform number from the sample's own stream, so that a sample does not depend on the number of samples.

All functions are pure: they take logits (B, V) and return new ones.
"""

import math

import numpy as np
import torch

from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import LogitsError as LogitsError
from ltc_textgen.shapes import Bool, Float, Int, Tensor

DRAW_BLOCK = 256


def forbid(logits: Float[Tensor, "B V"], token: int) -> Float[Tensor, "B V"]:
    """Set the logit of one token to -inf.

    Raises:
        LogitsError: If no other token is possible.
    """
    allowed = logits.index_fill(1, torch.tensor([token], device=logits.device), -math.inf)
    check_logits(allowed)
    return allowed


def check_logits(logits: Float[Tensor, "B V"]) -> None:
    """Validate that a token can be drawn from every row. A logit of -inf is a forbidden token and allowed.

    Raises:
        LogitsError: Names the first row that is NaN, +inf, or -inf everywhere.
    """
    finite = logits.amax(dim=1).isfinite()  # the maximum is NaN if any is, +inf if any is, -inf if all are
    if not bool(finite.all()):
        raise broken_logits(int((~finite).nonzero()[0, 0]))


def broken_logits(row: int) -> LogitsError:
    """The error of a row whose logits are no distribution."""
    return LogitsError(
        f"the model's logits of sample {row} are NaN or infinite: its weights are broken, or the state before; "
        "load an earlier checkpoint, or train again with a smaller learning rate"
    )


def penalize(logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], penalty: float) -> Float[Tensor, "B V"]:
    """Make seen tokens less likely: divide their positive logits by `penalty`, multiply their negative ones.

    Args:
        logits: As the model gives them; the penalty depends on their sign, so it comes before everything else.
        seen: Tokens of the prompt and of the text written so far.
        penalty: > 0; 1 changes nothing, below 1 makes seen tokens more likely.

    Source:
        Keskar et al. 2019, arXiv:1909.05858, section 4.1. The paper divides negative logits too, which would make
        them more likely; like every implementation since, we multiply those.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def penalize_counts(
    logits: Float[Tensor, "B V"], counts: Int[Tensor, "B V"], presence: float, frequency: float
) -> Float[Tensor, "B V"]:
    """Make tokens less likely that were drawn before: subtract `presence` once, and `frequency` each time.

    Args:
        logits: As the model gives them.
        counts: How often each token was drawn; the prompt does not count.
        presence: Below 0 makes drawn tokens more likely.
        frequency: The same.

    Source:
        The OpenAI API reference, "frequency and presence penalties".
    """
    return logits.float() - presence * (counts > 0) - frequency * counts


def temper(logits: Float[Tensor, "B V"], temperature: float) -> Float[Tensor, "B V"]:
    """Divide logits by a temperature, a normal float32 number > 0, with the largest shifted to 0 against overflow."""
    return (logits - logits.amax(dim=1, keepdim=True)) / temperature


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Keep the k largest logits of each row, and whatever ties with the k-th."""
    smallest = logits.topk(min(k, logits.shape[1]), dim=1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p (nucleus sampling).

    Source:
        Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """
    ordered, index = logits.sort(dim=1, descending=True, stable=True)
    probability = ordered.softmax(dim=1)
    likelier = probability.cumsum(dim=1) - probability  # mass of the tokens before this one
    surplus = likelier >= p
    surplus[:, 0] = False  # p may round to 0
    return logits.masked_fill(surplus.scatter(1, index, surplus), -math.inf)


def keep_min_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep tokens whose probability is at least p times that of the likeliest.

    Source:
        Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    probability = logits.softmax(dim=1)
    return logits.masked_fill(probability < p * probability.amax(dim=1, keepdim=True), -math.inf)


def shape_logits(
    logits: Float[Tensor, "B V"],
    sampling: SamplingConfig,
    seen: Bool[Tensor, "B V"] | None = None,
    eos_token_id: int | None = None,
) -> Float[Tensor, "B V"]:
    """Apply all of the sampling options to logits, in float32, in the order of this module.

    Args:
        logits: The model's output at one token.
        sampling: What to apply. Greedy sampling applies the penalty alone: no filter removes the likeliest token.
        seen: Tokens to penalize; None if there is no penalty.
        eos_token_id: The EOS token; forbidden if `sampling.ignore_eos`.

    Raises:
        LogitsError: See `check_logits`.
    """
    logits = logits.float()
    check_logits(logits)
    if sampling.ignore_eos and eos_token_id is not None:
        logits = forbid(logits, eos_token_id)
    if seen is not None:
        logits = penalize(logits, seen, sampling.repetition_penalty)
        check_logits(logits)
    if sampling.greedy:
        return logits
    logits = temper(logits, sampling.temperature)
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def draw(logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Draw a token from each row's softmax by inverting its cumulative distribution.

    Args:
        logits: Shaped logits; a token of -inf is never drawn.
        uniform: Numbers in [0, 1), float64, one per row.

    Returns:
        Token ids on the CPU, where the uniform numbers are.
    """
    # float64, for a sum over 30,000 float32 probabilities would be off by more than the rare ones are likely.
    cumulative = logits.cpu().double().softmax(dim=1).cumsum(dim=1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


class UniformStreams:
    """One unbounded stream of uniform numbers per sample, seeded by (seed, number of the sample).

    Numbers are generated on the CPU whatever the model's device, so that a seed gives the same text everywhere.

    Args:
        seed: Seed of the generation, >= 0.
        samples: Numbers of the samples that the rows are.
    """

    def __init__(self, seed: int, samples: range) -> None:
        self._generators = [torch.Generator().manual_seed(sample_seed(seed, sample)) for sample in samples]
        self._block = torch.empty(len(samples), 0, dtype=torch.float64)

    def next(self) -> Float[Tensor, " B"]:
        """One number in [0, 1), float64, for each sample."""
        number = self.ahead(1)[:, 0]
        self.skip(1)
        return number

    def ahead(self, count: int) -> Float[Tensor, "B _"]:
        """The next `count` numbers of each sample, without advancing."""
        while self._block.shape[1] < count:
            more = [torch.rand(DRAW_BLOCK, generator=g, dtype=torch.float64) for g in self._generators]
            self._block = torch.cat([self._block, torch.stack(more)], dim=1)
        return self._block[:, :count]

    def skip(self, count: int) -> None:
        """Advance past the next `count` numbers."""
        self._block = self._block[:, count:]

    def keep(self, rows: list[int]) -> None:
        """Continue with these rows only; their numbers stay the same."""
        self._generators = [self._generators[row] for row in rows]
        self._block = self._block[rows]


def sample_seed(seed: int, sample: int) -> int:
    """Seed of one sample's generator, in [0, 2**64); consecutive seeds give independent streams."""
    return int(np.random.SeedSequence(entropy=seed, spawn_key=(sample,)).generate_state(1, np.uint64)[0])
