"""The loss on windows at random places, as nanoGPT estimates it: cheap, and a little different each time.

Every crop starts at rest and is L tokens long; its first token is context alone for the second, and so on up to L
scored tokens, as in `score_tokens` with a window. Places are drawn uniformly and may overlap. The deterministic loss in
windows is what the estimate tends to, but for the ends of the text.

Source: `estimate_loss` of nanoGPT (eval_iters batches of random blocks).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.evaluation.scoring import score_tokens
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork


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
        """For JSON."""
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
