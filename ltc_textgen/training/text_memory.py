"""The n-gram memory that training leaves in the run directory.

The first part of the training text is held back from the network and from the counts, so that the weights of the
mixture are fitted on text that neither has seen. (The last part is worth more to the network, for what follows is most
like it.) The text is counted in a thread during training; the kernel releases the GIL. Once
they are fitted, the held-back part is counted too.
"""

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ltc_textgen.config import MemoryConfig, TrainConfig
from ltc_textgen.data.token_cache import TokenData
from ltc_textgen.evaluation.memory_scores import build_memory, calibration_tokens, fit_mixture, score_with_memory
from ltc_textgen.kernels.library import LIBRARY
from ltc_textgen.memory.files import save_memory
from ltc_textgen.memory.ngrams import NgramMemory
from ltc_textgen.model.network import LiquidNetwork

DELAY = 30.0
"""Seconds after the start of a run at which its text is counted, or at its end if that is earlier."""

ORDERS = {"char": 8, "byte": 8}
OTHER_ORDER = 5
"""Longest contexts by kind of tokenizer: a subword token spans some characters."""


def default_order(kind: str) -> int:
    """Tokens of the longest context for a kind of tokenizer."""
    return ORDERS.get(kind, OTHER_ORDER)


@dataclass(frozen=True)
class MemoryResult:
    """The memory of a run, and what it is worth on the validation text, static, in nats per token.

    Args:
        order: Tokens of the longest context.
        tokens: Training tokens counted.
        bytes: Size of the tables.
        network_loss: Loss of the network alone.
        memory_loss: Loss of the counts alone.
        mixed_loss: Loss of both together.
        scored_tokens: Tokens of the validation text over which the losses are.
    """

    order: int
    tokens: int
    bytes: int
    network_loss: float
    memory_loss: float
    mixed_loss: float
    scored_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of JSON values."""
        return asdict(self)


def hold_back(data: TokenData, train: TrainConfig) -> tuple[TokenData, np.ndarray]:
    """The corpus without the first part of its training text, and that part.

    The part is empty if training needs all of a short text for one batch.
    """
    needed = train.batch_size * (train.sequence_length + 1)
    count = max(0, min(calibration_tokens(len(data.train)), len(data.train) - needed))
    held_back = np.asarray(data.train[:count])
    return replace(data, train=cast("np.memmap", data.train[count:])), held_back


class MemoryBuilder:
    """Counts a training text in a thread during training; `finish` makes the run's memory of it.

    Args:
        data: Corpus, without what is held back.
        held_back: Text for the weights of the mixture.
        config: Order and size.
    """

    def __init__(self, data: TokenData, held_back: np.ndarray, config: MemoryConfig) -> None:
        self._data, self._held_back, self._config = data, held_back, config
        self._memory: NgramMemory | None = None
        self._error: BaseException | None = None
        # Not at once: the run measures its threads at the start, and would find a core busy.
        self._timer = threading.Timer(DELAY, self._count)
        self._timer.daemon = True  # a run that is stopped does not wait for the counts
        self._timer.start()

    @staticmethod
    def unavailable() -> bool:
        """Whether the package was built without the kernels that count."""
        return LIBRARY is None

    def _count(self) -> None:
        tokenizer, order = self._data.tokenizer, self._config.order
        order = default_order(tokenizer.kind) if order is None else order
        entries = int(self._config.max_megabytes * 2**20) // 6  # pruned to half that or less when all is counted
        try:
            self._memory = build_memory(
                self._data.train, tokenizer.vocab_size, tokenizer.eos_token_id, order, max_entries=entries
            )
        except BaseException as error:
            self._error = error

    def finish(self, out: Path, model: LiquidNetwork, scored_tokens: int, note: Callable[[str], None]) -> MemoryResult:
        """Fit the weights of the mixture, save the memory in the run directory, and score the validation text.

        Args:
            out: Run directory.
            model: Its network, with the weights that it keeps.
            scored_tokens: Tokens of the validation text to score.
            note: Called with what takes time.

        Raises:
            MemoryError: If there was no memory for the counts.
            LTCError: If the file cannot be written.
        """
        self._timer.cancel()
        self._timer.join()
        if self._memory is None and self._error is None:
            note("counting the text for the n-gram memory")
            self._count()
        if self._error is not None:
            raise self._error
        memory, data = self._memory, self._data
        assert memory is not None
        memory.prune(int(self._config.max_megabytes * 2**20))
        mixture = fit_mixture(model, memory, self._held_back)
        memory.learn(self._held_back)
        memory.reset()
        scores = score_with_memory(model, data.valid[: scored_tokens + 1], mixture, adapting=False)
        memory.reset()
        losses = (scores.network / scores.tokens, scores.memory / scores.tokens, scores.mixed / scores.tokens)
        tokens = len(data.train) + len(self._held_back)
        result = MemoryResult(memory.order, tokens, memory.file_size, *losses, scores.tokens)
        facts = {name: str(value) for name, value in result.to_dict().items()}
        save_memory(out, mixture, data.tokenizer.fingerprint, facts | {"corpus": data.corpus.fingerprint})
        return result
