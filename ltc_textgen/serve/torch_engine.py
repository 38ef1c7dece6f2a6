"""The reference engine: PyTorch, row after row, with every option.

Each row is computed alone, so that its bits cannot depend on the others; it gives what `ltc generate --engine torch`
does.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ltc_textgen.errors import LogitsError, UsageError
from ltc_textgen.generation.sampling import draw, penalize_counts, shape_logits
from ltc_textgen.memory import Mixture
from ltc_textgen.memory.mixture import Contexts
from ltc_textgen.memory.ngrams import LONGEST
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.serve.engine import SLICE, Clamp, Context, Drawn, Options, RowState, Scored
from ltc_textgen.shapes import Float, Int, Tensor

HELD = 1e30
"""Factor of a capacitance that keeps a neuron where it is during a token."""

SMALLEST_LOGPROB = -9999.0
"""What stands for -inf, which JSON does not have."""


class TorchEngine:
    """Reads and draws with the modules of a network.

    Args:
        model: Network, in evaluation mode, on any device.
    """

    name = "torch"

    def __init__(self, model: LiquidNetwork) -> None:
        self._model = model
        self._device = model.embed_tokens.weight.device

    def supports(self, options: Options) -> bool:
        """Everything is supported, except clamps on neurons that have no capacitance."""
        cells = [layer.cell for layer in self._model.stack()]
        return all(hasattr(cells[clamp.neuron.layer], "log_capacitance") for clamp in options.clamps)

    @torch.inference_mode()
    def read(self, context: Context, elapsed: float = 1.0, score: int | None = None) -> None:
        """The same as `Engine.read`."""
        end = min(context.at + SLICE, len(context.ids) - 1)
        ids = torch.from_numpy(context.ids[None, context.at : end]).to(self._device)
        hidden, context.state = self._model.advance(ids, context.state, elapsed)
        if score is not None:
            logits = self._model.lm_head.logits(hidden)[0]
            if context.memory is not None:
                read = [context.ids[:at][-LONGEST:].tolist() for at in range(context.at + 1, end + 1)]
                places = np.concatenate([context.memory.contexts_of(tokens) for tokens in read])
                logits = mixed(context.memory, logits, places)
            context.scored += scores(logits, torch.from_numpy(context.ids[context.at + 1 : end + 1]), score)
        context.at = end

    @torch.inference_mode()
    def draw(self, rows: list[RowState], count: int) -> list[Drawn | LogitsError]:
        """As `Engine.draw`, one token of each row."""
        return [self._draw(row) for row in rows]

    def release(self, row: RowState) -> None:
        """Nothing is kept outside the row."""

    def _draw(self, row: RowState) -> Drawn | LogitsError:
        options, context = row.options, row.context
        clamps = [clamp for clamp in options.clamps if clamp.start <= row.drawn]
        before = held(context.state, clamps)
        ids = torch.tensor([[context.last]], device=self._device)
        tau = None
        with stretched(self._model, clamps):
            hidden, after = self._model.advance(ids, before, options.elapsed)
            if options.observe:
                _, layers, _ = self._model.observe(ids, before, options.elapsed)
                tau = torch.cat([seen.tau[0] for seen in layers], dim=1).cpu()
        after = held(after, clamps)
        logits = self._model.lm_head.logits(hidden[:, -1])
        if options.memory is not None and row.contexts is not None:
            logits = mixed(options.memory, logits, row.contexts)
        try:
            token = self._choose(logits, row)
        except LogitsError as error:
            return error
        scored = None
        if options.logprobs is not None:
            scored = scores(logits, torch.tensor([token]), options.logprobs)
        context.advance(after, token)
        row.drawn += 1
        return Drawn([token], scored, tau)

    def _choose(self, logits: Float[Tensor, "1 V"], row: RowState) -> int:
        options, sampling, memory = row.options, row.options.sampling, row.options.memory
        logits = biased(logits, options.logit_bias)
        if row.counts is not None:
            logits = penalize_counts(logits, row.counts, options.presence_penalty, options.frequency_penalty)
        logits = shape_logits(logits, sampling, row.seen, row.eos_token_id)
        chosen = logits.argmax(dim=1).cpu() if sampling.greedy else draw(logits, row.uniform.next())
        token = int(chosen)
        if row.seen is not None:
            row.seen[0, token] = True
        if row.counts is not None:
            row.counts[0, token] += 1
        if memory is not None and row.contexts is not None:
            row.contexts = memory.advance(row.contexts, np.array([[token]]))
        return token


def mixed(memory: Mixture, logits: Float[Tensor, "T V"], contexts: Contexts) -> Float[Tensor, "T V"]:
    """Log-probabilities of the mixture of network and n-gram memory, each row after its own text."""
    return torch.from_numpy(memory.apply(logits.float().cpu().numpy(), contexts)).to(logits.device)


def biased(logits: Float[Tensor, "1 V"], bias: tuple[tuple[int, float], ...]) -> Float[Tensor, "1 V"]:
    """Logits with numbers added to some of them, in float32; -100 forbids a token."""
    if not bias:
        return logits
    logits = logits.float().clone()
    for token, value in bias:
        logits[0, token] += value if value > -100 else -math.inf
    return logits


def scores(logits: Float[Tensor, "T V"], tokens: Int[Tensor, " T"], top: int) -> list[Scored]:
    """Log-probability of each token, and the `top` likeliest tokens in its place.

    Raises:
        LogitsError: If a logit is NaN or +inf.
    """
    log_probs = logits.float().log_softmax(dim=1)
    if bool(log_probs.isnan().any()):
        raise LogitsError("the model's logits are NaN or infinite: its weights are broken, or the state before")
    log_probs = log_probs.clamp_min(SMALLEST_LOGPROB)
    own = log_probs.gather(1, tokens[:, None].to(logits.device))[:, 0].tolist()
    values, indices = log_probs.topk(min(top, logits.shape[1]), dim=1)
    likeliest = zip(indices.tolist(), values.tolist(), strict=True)
    return [Scored(logprob, list(zip(*pair, strict=True))) for logprob, pair in zip(own, likeliest, strict=True)]


def held(state: LiquidState, clamps: list[Clamp]) -> LiquidState:
    """A state in which clamped neurons have their values."""
    fixed = [(clamp.neuron, clamp.value) for clamp in clamps if clamp.value is not None]
    if not fixed:
        return state
    neurons = [layer.clone() for layer in state.neurons]
    for neuron, value in fixed:
        neurons[neuron.layer][0, neuron.index] = value
    return LiquidState(tuple(neurons), state.conv_state)


@contextmanager
def stretched(model: LiquidNetwork, clamps: list[Clamp]) -> Iterator[None]:
    """Multiply the capacitance of clamped neurons, and with it tau = C / G, while the `with` lasts.

    A neuron whose value is held gets such a large one that it does not move within a token.
    """
    layers = list(model.stack())
    changed = []
    for clamp in clamps:
        factor = clamp.tau_factor if clamp.value is None else HELD
        if factor != 1:
            parameter = layers[clamp.neuron.layer].cell.log_capacitance
            if not isinstance(parameter, Tensor):
                raise UsageError(f"clamp: layer {clamp.neuron.layer} has no capacitances")
            changed.append((parameter, clamp.neuron.index, parameter[clamp.neuron.index].clone()))
            parameter[clamp.neuron.index] += math.log(factor)
    try:
        yield
    finally:
        for parameter, index, value in reversed(changed):
            parameter[index] = value
