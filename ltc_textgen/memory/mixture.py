"""The geometric mixture of a network's distribution with that of an n-gram memory.

    log p(w) = a log p_network(w) + b log p_memory(w) - log Z

a and b are looked up by what is known before the token: the order of the matched context, how often it was seen, how
its counts are spread, and the probability of the network's likeliest token. They follow the gradient of log p(w) as
tokens are scored, which is that of an online logistic regression: an input's weight grows when the token that came was
likelier under it than its mean under the mixture.

Source: Mattern 2012, "Mixing strategies in data compression", DCC (geometric mixing); the weight sets chosen by context
are those of Mahoney's PAQ7 (2005).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ltc_textgen.errors import UsageError
from ltc_textgen.memory.ngrams import Floats, NgramMemory

START = (0.7, 0.4)
"""Weights of network and memory before anything was scored."""

RATE = 0.02
"""First step of a weight; it falls as 1 / sqrt(1 + n / 20) with the tokens scored in the same situation."""

COUNTS, WEIGHTS = 1, 2


class Scores(NamedTuple):
    """-ln p of each token, in nats.

    Args:
        memory: By the memory alone, (T,).
        mixed: By the mixture, (T,); empty without a network.
    """

    memory: Floats
    mixed: Floats


@dataclass(frozen=True)
class Mixture:
    """A memory with the weights that mix it with a network.

    Args:
        memory: Counts.
        weights: a and b of every situation, (S, 2).
        steps: How many tokens each situation has learned from, (S,).
    """

    memory: NgramMemory
    weights: Floats
    steps: Floats

    @classmethod
    def start(cls, memory: NgramMemory) -> "Mixture":
        """A mixture that has learned nothing yet."""
        situations = memory._library.ltc_memory_buckets()
        weights = np.tile(np.asarray(START, np.float32), (situations, 1))
        return cls(memory, np.ascontiguousarray(weights), np.zeros(situations, np.float32))

    def score(
        self,
        tokens: npt.ArrayLike,
        log_probs: npt.ArrayLike | None = None,
        *,
        adapt_counts: bool = False,
        adapt_weights: bool = False,
    ) -> Scores:
        """Score tokens that continue what the memory has read; each is scored before anything learns from it.

        Args:
            tokens: Ids, (T,).
            log_probs: The network's log-probabilities of each, (T, V); None scores the memory alone.
            adapt_counts: Count each token after it was scored.
            adapt_weights: Let the weights of the mixture follow each token after it was scored.

        Raises:
            UsageError: If a shape or an id does not fit, or a log-probability is not finite.
        """
        ids = self.memory.checked(tokens)
        network = None if log_probs is None else self._network(log_probs, (len(ids), self.memory.vocab_size))
        memory = np.empty(len(ids), np.float32)
        mixed = np.empty(0 if network is None else len(ids), np.float32)
        adapt = COUNTS * adapt_counts | WEIGHTS * adapt_weights
        status = self.memory._library.ltc_memory_score(
            self.memory._handle,
            ids.ctypes.data,
            len(ids),
            None if network is None else network.ctypes.data,
            *(self.weights.ctypes.data, self.steps.ctypes.data, RATE, adapt, memory.ctypes.data, mixed.ctypes.data),
        )
        if status:
            raise MemoryError("no memory for more n-grams")
        return Scores(memory, mixed)

    def log_probabilities(self, log_probs: npt.ArrayLike) -> Floats:
        """Log-probabilities of the next token by the mixture, (V,).

        Args:
            log_probs: Those of the network, (V,).

        Raises:
            UsageError: If the shape does not fit, or a log-probability is not finite.
        """
        V = self.memory.vocab_size
        network, p = self._network(log_probs, (V,)), np.empty(V, np.float64)
        scratch, mixed = np.empty(2 * V, np.float32), np.empty(V, np.float32)
        arrays = (network, self.weights, p, scratch, mixed)
        self.memory._library.ltc_memory_mix(self.memory._handle, *(array.ctypes.data for array in arrays))
        return mixed

    def _network(self, log_probs: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
        network = np.ascontiguousarray(log_probs, np.float32)
        if network.shape != shape:
            raise UsageError(f"log_probs: expected {shape}, got {network.shape}")
        if not np.isfinite(network).all():
            raise UsageError("log_probs: every value must be finite; the network's weights may be broken")
        return network
