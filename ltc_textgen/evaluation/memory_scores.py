"""Scores of a network together with an n-gram memory of its training text.

Two protocols, whose figures are never compared with each other:

* **static**: counts stay those of the training text. The weights of the mixture are fitted on the first
  `CALIBRATION` tokens of the text (at most a fifth of it) and then fixed; what is reported is the rest.
* **adapting**: counts and weights learn from every token after it was scored, as a compressor does. What is reported is
  the whole text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ltc_textgen.data.batches import release_pages
from ltc_textgen.errors import DataError
from ltc_textgen.memory import Mixture, NgramMemory
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import CHUNK, LiquidNetwork

CALIBRATION = 20_000
"""Tokens of the text on which the weights of a static mixture are fitted, at most."""


@dataclass(frozen=True)
class MemoryScores:
    """Sums of -ln p over the scored tokens, in nats.

    Args:
        network: By the network alone.
        memory: By the memory alone.
        mixed: By the mixture.
        tokens: Tokens scored.
        adapting: Whether counts and weights learned from what was scored.
        calibration_tokens: Tokens before the scored ones, on which the weights were fitted; 0 if they adapt.
    """

    network: float
    memory: float
    mixed: float
    tokens: int
    adapting: bool
    calibration_tokens: int


def build_memory(tokens: np.ndarray, vocab_size: int, eos_token_id: int | None, order: int) -> NgramMemory:
    """The memory of a stream of token ids, (T,), which may be memory-mapped. Contexts end at `eos_token_id`.

    Raises:
        UsageError: If an id is not in the vocabulary, or the compiled kernels are missing.
    """
    memory = NgramMemory(vocab_size, order, eos_token_id)
    for start in range(0, len(tokens), 1 << 20):
        memory.learn(tokens[start : start + (1 << 20)])
        release_pages(tokens)
    memory.reset()
    return memory


def score_with_memory(
    model: LiquidNetwork,
    tokens: np.ndarray,
    memory: NgramMemory,
    *,
    adapting: bool,
    progress: Callable[[int, int], None] | None = None,
) -> MemoryScores:
    """Read a stream of tokens with carried state, and score each by network, memory and mixture.

    Args:
        model: Network, in any mode.
        tokens: Token ids, (T,), T >= 2; the first is context alone.
        memory: Counts of the training text. It learns from the text if `adapting`.
        adapting: Which of the two protocols at the head of this module.
        progress: Called with the tokens read so far and all that will be.

    Raises:
        DataError: If there are too few tokens to score.
    """
    pairs = len(tokens) - 1
    calibration = 0 if adapting else min(CALIBRATION, pairs // 5)
    if pairs - calibration < 1:
        raise DataError(f"expected at least 2 tokens to score, got {len(tokens)}")
    mixture, sums, state = Mixture.start(memory), np.zeros(3), None
    memory.reset()
    memory.read(tokens[:1])
    with evaluating(model), torch.inference_mode():
        for start, end in _chunks(calibration, pairs):
            part = torch.from_numpy(np.asarray(tokens[start : end + 1]).astype(np.int64))[None]
            hidden, state = model.advance(part[:, :-1].to(model.embed_tokens.weight.device), state)
            log_probs = torch.log_softmax(model.lm_head.logits(hidden)[0].float(), -1).cpu().numpy()
            learns = adapting or start < calibration
            scores = mixture.score(part[0, 1:].numpy(), log_probs, adapt_counts=adapting, adapt_weights=learns)
            if start >= calibration:
                network = -log_probs[np.arange(end - start), part[0, 1:].numpy()]
                sums += [x.sum(dtype=np.float64) for x in (network, scores.memory, scores.mixed)]
            release_pages(tokens)
            if progress:
                progress(end, pairs)
    own, counts, mixed = (float(total) for total in sums)
    return MemoryScores(own, counts, mixed, pairs - calibration, adapting, calibration)


def _chunks(first: int, pairs: int) -> list[tuple[int, int]]:
    """Spans of at most CHUNK tokens, none of which reaches over `first`."""
    bounds = [*range(0, first, CHUNK), *range(first, pairs, CHUNK), pairs]
    return list(pairwise(bounds))
