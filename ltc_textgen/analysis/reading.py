"""Reading a text chunk by chunk while every neuron is recorded and, if asked for, clamped."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ltc_textgen.model.blocks import Observation, Trajectory, evaluating
from ltc_textgen.model.network import CHUNK, LiquidNetwork
from ltc_textgen.model.text_state import TextState
from ltc_textgen.shapes import Float, Int, Tensor

Moves = Callable[[int, int], Sequence[Trajectory]]
"""From the first token of a chunk and the one after its last to the trajectories of every layer."""


class Chunk(NamedTuple):
    """Some consecutive tokens of a text."""

    start: int
    stop: int
    surprise: Float[Tensor, " T"]
    """-ln p of each token given those before it, in nats; NaN for a first token without a context."""
    layers: list[Observation]
    """What each layer did, B = 1."""


def observe_text(
    model: LiquidNetwork,
    ids: Int[Tensor, "1 T"],
    state: TextState | None = None,
    elapsed: Float[Tensor, " T"] | None = None,
    moves: Moves | None = None,
    chunk: int = CHUNK,
) -> Iterator[Chunk]:
    """Read a text of any length and record every layer; the result does not depend on the chunks.

    Args:
        model: Network, in any mode; it is read in evaluation mode, without gradients.
        ids: Token ids.
        state: What was read before.
        elapsed: Time from each token to the next; 1 if None.
        moves: Trajectories that replace the layers' own, as when neurons are clamped.
        chunk: Tokens read at once.

    Raises:
        UsageError: If the state is of another network, or a shape does not fit.
    """
    device, before, liquid = model.embed_tokens.weight.device, None, None
    with evaluating(model), torch.no_grad():
        if state is not None:
            state.require_model(model)
            hidden, liquid = model.advance(state.last[:, None].to(device), state.liquid)
            before = hidden[:, -1]
        for start in range(0, ids.shape[1], chunk):
            part = ids[:, start : start + chunk].to(device)
            stop = start + part.shape[1]
            time = None if elapsed is None else elapsed[None, start:stop]
            hidden, layers, liquid = model.observe(part, liquid, time, moves and moves(start, stop))
            yield Chunk(start, stop, _surprise(model, before, hidden[0], part[0]), layers)
            before = hidden[:, -1]


def _surprise(
    model: LiquidNetwork, before: Float[Tensor, "1 D"] | None, hidden: Float[Tensor, "T D"], ids: Int[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """Loss of each token of a chunk, from the hidden vector before it."""
    if before is not None:
        return model.lm_head.loss(torch.cat([before, hidden[:-1]]), ids).float()
    first = hidden.new_full((1,), float("nan"), dtype=torch.float32)
    return torch.cat([first, model.lm_head.loss(hidden[:-1], ids[1:]).float()]) if len(ids) > 1 else first
