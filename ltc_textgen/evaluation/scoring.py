"""The loss on a stream of tokens: exactly, with carried state or in windows, or estimated from random crops.

A crop starts from the initial state and has L scored tokens, as a window of `score_tokens` has. Places are drawn
uniformly and may overlap; the expected value is the loss in windows, except at the ends of the text. Source:
`estimate_loss` of nanoGPT (eval_iters batches of random blocks).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ltc_textgen.data.batches import release_pages
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import CHUNK, LiquidNetwork, read_chunks
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Float, Int, Tensor

BATCH_TOKENS = 16_384
"""Tokens of a batch of windows."""

HEAD_LOGITS = 2**23
"""Most logits in memory at once: with a large vocabulary, fewer tokens are scored at a time."""


def score_tokens(
    model: LiquidNetwork,
    tokens: np.ndarray,
    *,
    window: int | None = None,
    rows: int = 1,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, int]:
    """Sum of -ln p over a stream of tokens; the first is context alone, every other is scored once.

    Args:
        model: Network, in any mode; it is scored in evaluation mode, without gradients.
        tokens: Token ids, (T,), any integers, T >= 2; may be memory-mapped.
        window: As in `evaluate`.
        rows: With carried state: split the stream into so many batch rows, each of which starts from the
            initial state. Faster; inexact at the first tokens of all parts but the first. 1 is exact.
        chunk: Tokens of a row that are read at once; the result does not depend on it.
        progress: As in `evaluate`.

    Returns:
        The sum in nats, which is not finite if the model's output is not, and the number of tokens scored, T - 1.

    Raises:
        DataError: If there are fewer than 2 tokens.
        UsageError: If window, rows or chunk is below 1.
    """
    for name, value in (("window", window), ("rows", rows), ("chunk", chunk)):
        if value is not None and value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}")
    pairs = len(tokens) - 1
    if pairs < 1:
        raise DataError(f"expected at least 2 tokens to score, got {len(tokens)}")
    scorer = _Scorer(model, tokens, chunk, progress)
    with evaluating(model), torch.inference_mode():
        if window is None:
            rows = min(rows, pairs)
            state = scorer.score(rows, pairs // rows, None)
            if pairs % rows:  # continue the last part
                scorer.score(1, pairs % rows, state.select(torch.tensor([rows - 1])))
        else:
            while full := (pairs - scorer.done) // window:
                scorer.score(min(full, max(1, BATCH_TOKENS // min(window, chunk))), window, None)
            if scorer.done < pairs:
                scorer.score(1, pairs - scorer.done, None)
    return scorer.nll, pairs


class _Scorer:
    """Adds up the loss over blocks of rows of a stream."""

    def __init__(
        self,
        model: LiquidNetwork,
        tokens: np.ndarray,
        chunk: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._model, self._tokens, self._chunk, self._progress = model, tokens, chunk, progress
        self.nll, self.done = 0.0, 0

    def score(self, rows: int, length: int, state: LiquidState | None) -> LiquidState:
        """Score the next rows * length tokens, as rows of one batch."""
        start, self.done = self.done, self.done + rows * length
        inputs, targets = (self._tokens[start + shift : self.done + shift].reshape(rows, length) for shift in (0, 1))
        steps = range(0, length, self._chunk)
        for at, (hidden, after) in zip(steps, read_chunks(self._model, inputs, state, chunk=self._chunk), strict=True):
            wanted = torch.from_numpy(targets[:, at : at + self._chunk].astype(np.int64))
            self.nll += self._sum(hidden.flatten(0, 1), wanted.flatten().to(hidden.device))
            release_pages(self._tokens)
            if self._progress:
                self._progress(start + rows * (at + wanted.shape[1]), len(self._tokens) - 1)
            state = after
        assert state is not None
        return state

    def _sum(self, hidden: Float[Tensor, "B D"], targets: Int[Tensor, " B"]) -> float:
        size = max(1, HEAD_LOGITS // self._model.settings.vocabulary)
        parts = zip(hidden.split(size), targets.split(size), strict=True)
        # float64 is summed on the CPU: not every device has it.
        return sum(float(self._model.lm_head.loss(h, t).cpu().double().sum()) for h, t in parts)


@dataclass(frozen=True)
class CropEstimate:
    """A loss from random crops.

    Args:
        nll_per_token: Mean over all tokens of all crops, nats.
        standard_error: Of that mean, from the spread of the crops' means; None of a single crop.
        crops: How many.
        window: L, tokens scored in each.
        seed: Of the places.
    """

    nll_per_token: float
    standard_error: float | None
    crops: int
    window: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of JSON values."""
        return asdict(self)


def score_crops(model: LiquidNetwork, tokens: np.ndarray, crops: int, window: int, seed: int = 0) -> CropEstimate:
    """Estimate the loss from random crops.

    Args:
        model: Network, in any mode.
        tokens: Token ids, (T,); may be memory-mapped.
        crops: How many, >= 1.
        window: L >= 1.
        seed: Same seed, same places.

    Raises:
        UsageError: If crops or window is below 1.
        DataError: If the text has no L + 1 tokens.
    """
    if crops < 1 or window < 1:
        raise UsageError(f"crops and window: expected at least 1, got {crops} and {window}")
    if len(tokens) <= window:
        raise DataError(f"the text has {len(tokens):,} tokens: too few for crops of {window} and the first's context")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - window, (crops,), generator=generator)
    means = np.array([score_tokens(model, tokens[at : at + window + 1])[0] / window for at in starts.tolist()])
    error = None if crops == 1 else float(means.std(ddof=1) / math.sqrt(crops))
    return CropEstimate(float(means.mean()), error, crops, window, seed)
