"""How many tokens of the past a prediction uses: the loss when the state was reset k tokens ago."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ltc_textgen.analysis.reading import observe_text
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import LiquidNetwork, read_chunks
from ltc_textgen.shapes import Float, Int, Tensor

DISTANCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512)
TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class MemoryCurve:
    """The loss as a function of how much of the past is known.

    Args:
        distance: k, tokens that were read before each predicted one, from the initial state.
        loss: Mean loss of the predicted tokens, in nats, at each k.
        error: Standard error of the increase over `whole` at each k; the same tokens are predicted at every k.
        whole: Mean loss of the same tokens with all of the past.
        tokens: How many are predicted.
    """

    distance: list[int]
    loss: Float[np.ndarray, " K"]
    error: Float[np.ndarray, " K"]
    whole: float
    tokens: int

    @property
    def increase(self) -> Float[np.ndarray, " K"]:
        """Nats per token that are lost where only k tokens are known."""
        return self.loss - self.whole


def memory_curve(
    model: LiquidNetwork,
    text: str | Tensor,
    tokenizer: Any = None,
    *,
    distances: Sequence[int] = DISTANCES,
    tokens: int = 512,
    seed: int = 0,
) -> MemoryCurve:
    """Predict tokens of a text from the last k tokens alone, for each k.

    The whole state is reset, that of the convolution too. A token with fewer than k before it is predicted
    from all of them.

    Args:
        model: Network, in any mode.
        text: A text, or token ids (1, T).
        tokenizer: That of the run directory if None.
        distances: Every k, >= 1.
        tokens: Tokens to predict, at random places; all if there are fewer.
        seed: Of the places.

    Raises:
        DataError: If the text has fewer than two tokens.
        UsageError: If a distance is below 1, the text has no tokens, or there is no tokenizer.
    """
    ids = model.token_ids(text, tokenizer)
    if ids.shape[1] < 2:
        raise DataError("memory curve: the text has one token, at least 2 are needed")
    if not distances or min(distances) < 1 or tokens < 1:
        raise UsageError(f"memory curve: expected distances and tokens of at least 1, got {list(distances)}, {tokens}")
    places = _places(ids.shape[1], tokens, seed)
    whole = torch.cat([part.surprise for part in observe_text(model, ids)])[places].double()
    losses = [torch.where(places > k, _loss(model, ids[0], places, k), whole) for k in distances]
    loss = torch.stack(losses).cpu().numpy()
    change = loss - whole.cpu().numpy()
    error = change.std(axis=1, ddof=1) / len(places) ** 0.5 if len(places) > 1 else np.full(len(loss), np.nan)
    return MemoryCurve(list(distances), loss.mean(axis=1), error, float(whole.mean()), len(places))


def _places(length: int, tokens: int, seed: int) -> Int[Tensor, " B"]:
    """Positions of the tokens to predict, in order."""
    drawn = torch.randperm(length - 1, generator=torch.Generator().manual_seed(seed))[:tokens] + 1
    return drawn.sort().values


def _loss(model: LiquidNetwork, ids: Int[Tensor, " T"], places: Int[Tensor, " B"], k: int) -> Float[Tensor, " B"]:
    """Loss of the tokens at `places` after the k tokens before each; undefined where there are fewer."""
    found = []
    with evaluating(model), torch.no_grad():
        for some in places.clamp(min=k).split(max(1, TOKENS_AT_ONCE // k)):
            if k >= len(ids):
                return torch.zeros(len(places), dtype=torch.float64)
            index = some[:, None] - k + torch.arange(k)
            for hidden, _ in read_chunks(model, ids[index.to(ids.device)]):
                last = hidden[:, -1]
            found.append(model.lm_head.loss(last, ids[some.to(ids.device)]).double().cpu())
    return torch.cat(found)
