"""Scores of a network together with an n-gram memory of its training text.

Two protocols, whose figures are never compared with each other:

* **static**: counts stay those of the training text, and the weights of the mixture those that were fitted after
  training, on a part of the training text that neither the network nor the counts had seen (`fit_mixture`).
* **adapting**: counts and weights learn from every token after it was scored, as a compressor does, and a second memory
  of the text read so far joins the mixture.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ltc_textgen.data.batches import release_pages
from ltc_textgen.errors import DataError
from ltc_textgen.memory import Mixture, NgramMemory
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import CHUNK, LiquidNetwork, read_chunks

Predictions = Iterable[tuple[np.ndarray, np.ndarray]]
"""A network's log-probabilities, (t, V), and the tokens that came, (t,), of one stretch of a text after another."""

CALIBRATION = 50_000
"""Tokens that are held back from training to fit the mixture's weights, at most; and no more than a twentieth."""


@dataclass(frozen=True)
class MemoryScores:
    """Sums of -ln p over the scored tokens, in nats.

    Args:
        network: By the network alone.
        memory: By the memory alone.
        mixed: By the mixture.
        tokens: Tokens scored.
        adapting: Whether counts and weights learned from what was scored.
    """

    network: float
    memory: float
    mixed: float
    tokens: int
    adapting: bool


def calibration_tokens(tokens: int) -> int:
    """How many tokens of a training text of `tokens` are for the weights of the mixture."""
    return min(CALIBRATION, tokens // 20)


def build_memory(
    tokens: np.ndarray, vocab_size: int, eos_token_id: int | None, order: int, max_entries: int = 1 << 24
) -> NgramMemory:
    """The memory of a stream of token ids, (T,), which may be memory-mapped. Contexts end at `eos_token_id`.

    Raises:
        UsageError: If an id is not in the vocabulary, or the compiled kernels are missing.
    """
    memory = NgramMemory(vocab_size, order, eos_token_id, max_entries)
    for start in range(0, len(tokens), 1 << 20):
        memory.learn(tokens[start : start + (1 << 20)])
        release_pages(tokens)
    memory.reset()
    return memory


def fit_mixture(model: LiquidNetwork, memory: NgramMemory, tokens: np.ndarray) -> Mixture:
    """Fit the weights of the mixture on text that neither the network nor the counts have seen.

    Args:
        model: Network, in any mode.
        memory: Counts of the training text; not changed.
        tokens: Token ids, (T,). With fewer than 2 the weights stay as they start.
    """
    return fit_to_predictions(_predictions(model, tokens), memory, tokens[:1])


def fit_to_predictions(predictions: Predictions, memory: NgramMemory, first: np.ndarray) -> Mixture:
    """As `fit_mixture`, for predictions of any model.

    Args:
        predictions: Of a text after its first token.
        memory: Counts of the training text; not changed.
        first: The text's first token, (1,), or nothing.
    """
    mixture = Mixture.start(memory)
    memory.reset()
    memory.read(first)
    for log_probs, targets in predictions:
        mixture.score(targets, log_probs, adapt_weights=True)
    memory.reset()
    return mixture


def score_with_memory(
    model: LiquidNetwork,
    tokens: np.ndarray,
    mixture: Mixture,
    *,
    adapting: bool,
    progress: Callable[[int, int], None] | None = None,
) -> MemoryScores:
    """Read a stream of tokens with carried state, and score each by network, memory and mixture.

    Args:
        model: Network, in any mode.
        tokens: Token ids, (T,), T >= 2; the first is context alone.
        mixture: Counts of the training text, with fitted weights. Its counts grow by the text if `adapting`.
        adapting: Which of the two protocols at the head of this module.
        progress: Called with the tokens read so far and all that will be.

    Raises:
        DataError: If there are too few tokens to score.
    """
    mixture = mixture.adapting() if adapting else mixture
    return score_predictions(_predictions(model, tokens), tokens[:1], mixture, progress and _of(progress, tokens))


def adapt(model: LiquidNetwork, tokens: np.ndarray, mixture: Mixture) -> Mixture:
    """The mixture after it has learned from a text as it read it, which may be shorter than two tokens.

    Args:
        model: Network, in any mode.
        tokens: Token ids, (T,).
        mixture: As for `score_with_memory`; its counts grow by the text.
    """
    learned = mixture.adapting()
    if len(tokens) > 1:
        score_predictions(_predictions(model, tokens), tokens[:1], learned)
    return learned


def score_predictions(
    predictions: Predictions, first: np.ndarray, mixture: Mixture, progress: Callable[[int], None] | None = None
) -> MemoryScores:
    """As `score_with_memory`, for predictions of any model. A mixture that is adapting learns what was scored.

    Args:
        predictions: Of a text after its first token.
        first: The text's first token, (1,).
        mixture: Counts and weights.
        progress: Called with the tokens scored so far.

    Raises:
        DataError: If there is nothing to score.
    """
    sums, done, adapting = np.zeros(3), 0, mixture.recent is not None
    mixture.memory.reset()
    mixture.memory.read(first)
    for log_probs, targets in predictions:
        scores = mixture.score(targets, log_probs, adapt_counts=adapting, adapt_weights=adapting)
        network = -log_probs[np.arange(len(targets)), targets]
        sums += [x.sum(dtype=np.float64) for x in (network, scores.memory, scores.mixed)]
        done += len(targets)
        if progress:
            progress(done)
    if not done:
        raise DataError("expected at least 2 tokens to score")
    own, counts, mixed = (float(total) for total in sums)
    return MemoryScores(own, counts, mixed, done, adapting)


def _of(progress: Callable[[int, int], None], tokens: np.ndarray) -> Callable[[int], None]:
    return lambda done: progress(done, len(tokens) - 1)


def _predictions(model: LiquidNetwork, tokens: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities, (t, V), and the tokens that came, (t,), in chunks, with carried state."""
    starts = range(0, len(tokens) - 1, CHUNK)
    with evaluating(model), torch.inference_mode():
        for start, (hidden, _) in zip(starts, read_chunks(model, tokens[None, :-1]), strict=True):
            log_probs = torch.log_softmax(model.lm_head.logits(hidden)[0].float(), -1)
            yield log_probs.cpu().numpy(), tokens[start + 1 : start + CHUNK + 1].astype(np.int64)
            release_pages(tokens)
