"""Reading text without learning from it: what generation and evaluation share."""

import torch

from ltc_textgen.modes import evaluating as evaluating
from ltc_textgen.network import LiquidNetwork
from ltc_textgen.shapes import Float, Int, Tensor
from ltc_textgen.state import LiquidState

CHUNK = 512
"""Tokens of a sequence that go through the network at once: the memory of reading does not grow with the text."""


@torch.inference_mode()
def read(
    model: LiquidNetwork, ids: Int[Tensor, "B T"], state: LiquidState | None = None, chunk: int = CHUNK
) -> tuple[Float[Tensor, "B D"], LiquidState]:
    """Read tokens of any number in chunks.

    Args:
        model: Network, in evaluation mode (see `evaluating`).
        ids: Token ids, T >= 1, on any device.
        state: State before the first token; rest if None.
        chunk: Tokens read at once; the result does not depend on it.

    Returns:
        Hidden vector at the last token, which predicts the next one, and the state after it.
    """
    device = model.embedding.weight.device
    first, *others = ids.split(chunk, dim=1)
    hidden, after = model.advance(first.to(device), state)
    for piece in others:
        hidden, after = model.advance(piece.to(device), after)
    return hidden[:, -1], after
