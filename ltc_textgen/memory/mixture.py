"""The geometric mixture of a network's distribution with those of n-gram memories.

    log p(w) = sum_e a_e log p_e(w) - log Z,      e: network, memory of the training text, memory of the text read since

A weight a_e is a sum of four, each looked up by something that is known before the token: how the training text's
memory matches (order of the matched context, how often it was seen, how its counts are spread); whether network and
memory have the same likeliest token, and how likely each is to them; the token before; how the memory of the text read
since matches. The weights follow the gradient of log p(w) as tokens are scored, which is that of an online logistic
regression: an input's weight grows when the token that came was likelier under it than its mean under the mixture.

Source: Mattern 2012, "Mixing strategies in data compression", DCC (geometric mixing); weights by several contexts are
those of Mahoney's PAQ7 (2005). Kernel: csrc/mixture.cpp.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.kernels.library import LIBRARY, pointers
from ltc_textgen.memory.ngrams import LONGEST, Floats, NgramMemory, address, checked_array

START = (0.7, 0.4, 0.0)
"""Weights of network, memory and recent memory before anything was scored."""

RATE = 0.01
"""First step of a weight; it falls as 1 / sqrt(1 + n / 20) with the tokens scored in the same situation."""

RECENT_ORDER = 4
"""Order of the memory of what was read since training. Longer contexts measured no better on 100,000 characters."""

COUNTS, WEIGHTS = 1, 2

Contexts = npt.NDArray[np.uint32]
"""The last tokens of each row of a batch, (B, 1 + LONGEST): how many, then the tokens, the newest first."""


class Scores(NamedTuple):
    """-ln p of each token, in nats.

    Args:
        memory: By the memory of the training text alone, (T,).
        mixed: By the mixture, (T,); empty without a network.
    """

    memory: Floats
    mixed: Floats


class Native(ctypes.Structure):
    """The struct `Mixture` of csrc/mixture.cpp. It keeps a reference to the `Mixture` whose arrays it points to."""

    owner: "Mixture"

    _fields_ = (
        *pointers("counts", "recent", "weights", "steps"),
        ("rate", ctypes.c_float),
        ("share", ctypes.c_float),
    )


@dataclass(frozen=True)
class Mixture:
    """A memory with the weights that mix it with a network.

    Args:
        memory: Counts of the training text.
        weights: Of network, memory and recent memory for every situation, (S, 3).
        steps: How many tokens each situation has learned from, (S,).
        recent: Counts of the text read since; None if nothing is learned while reading.
        share: Fraction of the memories, 0 to 1: every weight is interpolated between that of the network alone and the
            fitted one.
    """

    memory: NgramMemory
    weights: Floats
    steps: Floats
    recent: NgramMemory | None = None
    share: float = 1.0

    @classmethod
    def start(cls, memory: NgramMemory) -> "Mixture":
        """A mixture with initial weights."""
        situations, matches = _situations()
        weights = np.zeros((situations, len(START)), np.float32)
        weights[:matches] = START
        return cls(memory, weights, np.zeros(situations, np.float32))

    def adapting(self) -> "Mixture":
        """A copy with weights of its own that also mixes a memory of the text that it reads.

        The counts of the training text are shared, and grow with `score(adapt_counts=True)`.
        """
        memory = self.memory
        recent = NgramMemory(memory.vocab_size, min(RECENT_ORDER, memory.order), memory.eos_token_id)
        return replace(self, weights=self.weights.copy(), steps=self.steps.copy(), recent=recent)

    def with_share(self, share: float) -> "Mixture":
        """The same mixture with another fraction of the memories, 0 to 1.

        Raises:
            UsageError: If it is out of range.
        """
        if not 0 <= share <= 1:
            raise UsageError(f"memory: expected a number from 0 to 1, got {share}")
        return replace(self, share=share)

    def score(
        self,
        tokens: npt.ArrayLike,
        log_probs: npt.ArrayLike | None = None,
        *,
        adapt_counts: bool = False,
        adapt_weights: bool = False,
    ) -> Scores:
        """Score tokens that continue what the memory has read; each is scored before counts or weights change with it.

        Args:
            tokens: Ids, (T,).
            log_probs: The network's log-probabilities of each, (T, V); None scores the memory alone.
            adapt_counts: Count each token after it was scored.
            adapt_weights: Let the weights of the mixture follow each token after it was scored.

        Raises:
            UsageError: If a shape or an id does not fit, or a log-probability is not finite.
            MemoryError: If there is no memory for more counts.
        """
        ids = self.memory.checked(tokens)
        network = None if log_probs is None else self._network(log_probs, (len(ids), self.memory.vocab_size))
        memory = np.empty(len(ids), np.float32)
        mixed = np.empty(0 if network is None else len(ids), np.float32)
        adapt = COUNTS * adapt_counts | WEIGHTS * adapt_weights
        place = None if network is None else address(network)
        native = self.native()
        if _library().ltc_mixture_score(
            ctypes.byref(native), address(ids), len(ids), place, adapt, address(memory), address(mixed)
        ):
            raise MemoryError("no memory for more n-grams")
        return Scores(memory, mixed)

    def apply(self, logits: Floats, contexts: Contexts) -> Floats:
        """Log-probabilities of the next token by the mixture, (B, V).

        Args:
            logits: Those of the network, (B, V), float32. A row that holds NaN or infinity is returned as it is.
            contexts: The text before it, one row each; see `contexts_of`.

        Raises:
            UsageError: If a shape does not fit.
        """
        rows, V = len(contexts), self.memory.vocab_size
        if logits.shape != (rows, V) or contexts.shape[1:] != (1 + LONGEST,):
            raise UsageError(f"logits: expected {(rows, V)}, got {logits.shape}")
        mixed = np.array(logits, np.float32, order="C")
        if self.share == 0:
            return mixed
        native, places = self.native(), np.ascontiguousarray(contexts, np.uint32)
        if _library().ltc_mixture_apply(ctypes.byref(native), rows, address(places), address(mixed)):
            raise MemoryError("no memory for a distribution")
        return mixed

    def contexts_of(self, tokens: Sequence[int], batch_size: int = 1) -> Contexts:
        """The contexts of rows that have all read the same tokens."""
        contexts = np.zeros((batch_size, 1 + LONGEST), np.uint32)
        contexts[:] = self.advance(contexts[:1], np.asarray([tokens], np.int64)) if len(tokens) else 0
        return contexts

    def advance(self, contexts: Contexts, tokens: npt.NDArray[np.int64]) -> Contexts:
        """The contexts after each row has read some tokens, (B, T)."""
        advanced, native = contexts.copy(), self.native()
        for column in np.ascontiguousarray(tokens[:, -LONGEST:].T):
            _library().ltc_mixture_advance(
                ctypes.byref(native), len(advanced), address(advanced), address(np.ascontiguousarray(column))
            )
        return advanced

    def native(self) -> Native:
        """The mixture as the struct that the kernels take."""
        recent = None if self.recent is None else self.recent._handle
        native = Native(self.memory._handle, recent, address(self.weights), address(self.steps), RATE, self.share)
        native.owner = self
        return native

    def save(self, path: Path, about: Mapping[str, str] | None = None) -> None:
        """Write counts and weights as one safetensors file, atomically. What adapts while reading is not kept.

        Args:
            path: File to write.
            about: Strings to keep in the file's header.

        Raises:
            LTCError: If the file cannot be written.
        """
        from safetensors.numpy import save

        tables, header = self.memory.tables()
        tensors = {**tables, "weights": self.weights, "steps": self.steps}
        write_atomic(path, save(tensors, {**(about or {}), **header}))

    @classmethod
    def load(cls, path: Path) -> "tuple[Mixture, dict[str, str]]":
        """Read a file that `save` wrote.

        Returns:
            The mixture, its memory at the beginning of a text, and the strings of the file's header.

        Raises:
            ArtifactError: If the file is missing, damaged, or its tables cannot be those of a mixture.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged or not a safetensors file: {error}") from None
        situations, _ = _situations()
        try:
            memory = NgramMemory.from_tables(arrays, header)
            weights = checked_array(arrays["weights"], np.float32, (situations, len(START)))
            steps = checked_array(arrays["steps"], np.float32, (situations,))
        except KeyError as error:
            raise ArtifactError(f"{path} is no n-gram memory: it lacks {error}") from None
        except ValueError as error:
            raise ArtifactError(f"{path} is no n-gram memory: {error}") from None
        if not (np.isfinite(weights).all() and np.isfinite(steps).all() and (steps >= 0).all()):
            raise ArtifactError(f"{path} is damaged: weights that are not finite")
        return cls(memory, weights.copy(), steps.copy()), header

    def _network(self, log_probs: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
        network = np.ascontiguousarray(log_probs, np.float32)
        if network.shape != shape:
            raise UsageError(f"log_probs: expected {shape}, got {network.shape}")
        if not np.isfinite(network).all():
            raise UsageError("log_probs: every value must be finite; the network's weights may be broken")
        return network


def _situations() -> tuple[int, int]:
    """Rows of the weights, and how many of them, from the first, are chosen by the memory's match."""
    rows = np.empty(2, np.int64)
    _library().ltc_mixture_rows(address(rows))
    return int(rows[0]), int(rows[1])


@cache
def _library() -> ctypes.CDLL:
    """The library with argument types declared: ctypes would cut addresses to 32 bits otherwise."""
    library = LIBRARY
    assert library is not None  # there is no NgramMemory without it
    p, i, n = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    for name, result, arguments in (
        ("rows", None, (p,)),
        ("score", i, (p, p, n, p, i, p, p)),
        ("apply", i, (p, n, p, p)),
        ("advance", None, (p, n, p, p)),
    ):
        function = getattr(library, f"ltc_mixture_{name}")
        function.restype, function.argtypes = result, arguments
    return library
