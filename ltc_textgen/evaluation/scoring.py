"""The sum of -ln p over a stream of tokens, with carried state, in windows or in lanes.

The loss on windows at random places, as nanoGPT estimates it: cheap, and a little different each time.

Every crop starts at rest and is L tokens long; its first token is context alone for the second, and so on up to L
scored tokens, as in `score_tokens` with a window. Places are drawn uniformly and may overlap. The deterministic loss in
windows is what the estimate tends to, but for the ends of the text.

Source: `estimate_loss` of nanoGPT (eval_iters batches of random blocks).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ltc_textgen.data.batches import release_pages
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import CHUNK
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Float, Int, Tensor

BATCH_TOKENS = 16_384
"""Tokens that go through the network at once when windows are scored side by side."""

HEAD_LOGITS = 2**23
"""Logits that exist at once: a large vocabulary is scored some tokens at a time."""


def score_tokens(
    model: LiquidTimeConstantNetwork,
    tokens: np.ndarray,
    *,
    window: int | None = None,
    lanes: int = 1,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, int]:
    """Sum of -ln p over a stream of tokens; the first is context alone, every other is scored once.

    Args:
        model: Network, in any mode; it is scored in evaluation mode, without gradients.
        tokens: Token ids, (T,), any integers, T >= 2; may be memory-mapped.
        window: As in `evaluate`.
        lanes: With carried state: cut the stream into so many parts and read them side by side, each from rest. Faster,
            and exact but for the first tokens of all parts but the first. 1 is exact. Windows need no lanes.
        chunk: Tokens of a row that are read at once; the result does not depend on it.
        progress: As in `evaluate`.

    Returns:
        The sum in nats, which is not finite if the model's output is not, and the number of tokens scored, T - 1.

    Raises:
        DataError: If there are fewer than 2 tokens.
        UsageError: If window, lanes or chunk is below 1.
    """
    for name, value in (("window", window), ("lanes", lanes), ("chunk", chunk)):
        if value is not None and value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}")
    pairs = len(tokens) - 1
    if pairs < 1:
        raise DataError(f"expected at least 2 tokens to score, got {len(tokens)}")
    scorer = _Scorer(model, tokens, chunk, progress)
    with evaluating(model), torch.inference_mode():
        if window is None:
            lanes = min(lanes, pairs)
            state = scorer.score(lanes, pairs // lanes, None)
            if pairs % lanes:  # the last lane goes on
                scorer.score(1, pairs % lanes, state.select(torch.tensor([lanes - 1])))
        else:
            while full := (pairs - scorer.done) // window:
                scorer.score(min(full, max(1, BATCH_TOKENS // min(window, chunk))), window, None)
            if scorer.done < pairs:
                scorer.score(1, pairs - scorer.done, None)
    return scorer.nll, pairs


class _Scorer:
    """Goes through a stream in blocks of rows, adding up."""

    def __init__(
        self,
        model: LiquidTimeConstantNetwork,
        tokens: np.ndarray,
        chunk: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._model, self._tokens, self._chunk, self._progress = model, tokens, chunk, progress
        self.nll, self.done = 0.0, 0

    def score(self, rows: int, length: int, state: LiquidState | None) -> LiquidState:
        """Score the next rows * length tokens, laid out in rows that are read side by side."""
        start, self.done = self.done, self.done + rows * length
        device = self._model.embed_tokens.weight.device
        for at in range(0, length, self._chunk):
            columns = start + at + np.arange(min(self._chunk, length - at))
            index = columns[None, :] + length * np.arange(rows)[:, None]
            inputs, targets = (
                torch.from_numpy(self._tokens[index + shift].astype(np.int64)).to(device) for shift in (0, 1)
            )
            hidden, state = self._model.advance(inputs, state)
            self.nll += self._sum(hidden.flatten(0, 1), targets.flatten())
            release_pages(self._tokens)
            if self._progress:
                self._progress(start + rows * (at + len(columns)), len(self._tokens) - 1)
        assert state is not None
        return state

    def _sum(self, hidden: Float[Tensor, "B D"], targets: Int[Tensor, " B"]) -> float:
        size = max(1, HEAD_LOGITS // self._model.settings.vocabulary)
        pieces = zip(hidden.split(size), targets.split(size), strict=True)
        # float64 is summed on the CPU: not every device has it.
        return sum(float(self._model.lm_head.loss(h, t).cpu().double().sum()) for h, t in pieces)


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


def score_crops(
    model: LiquidTimeConstantNetwork, tokens: np.ndarray, crops: int, window: int, seed: int = 0
) -> CropEstimate:
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
