"""The native decoder as an engine: all rows of a model in one compiled call, many tokens at a time.

A row has the same bits alone and among others, on any number of threads, and however its text is split into calls
(`kernels.decoder_rows`).
"""

from dataclasses import replace

import numpy as np
import torch

from ltc_textgen.errors import LogitsError
from ltc_textgen.generation.engines import native_choice
from ltc_textgen.generation.native import NativeDecoder
from ltc_textgen.generation.sampling import DRAW_BLOCK, broken_logits
from ltc_textgen.kernels.decoder_rows import Choice, Hold, Rows, Work, Written
from ltc_textgen.memory.ngrams import LONGEST
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.serve.engine import SLICE, Clamp, Context, Drawn, Options, RowState, Scored
from ltc_textgen.serve.torch_engine import SMALLEST_LOGPROB
from ltc_textgen.shapes import Float, Tensor

FORBIDDEN = -100.0
"""A bias that forbids its token."""


class NativeEngine:
    """Reads and draws with a packed copy of a network's weights.

    Args:
        model: Network, in evaluation mode.
        slots: Most rows at a time.
        int8: Weights of 8 bits.

    Raises:
        UsageError: If the model cannot be decoded natively; the message says why.
    """

    def __init__(self, model: LiquidNetwork, slots: int, *, int8: bool = False) -> None:
        self.name = "int8" if int8 else "native"
        core = NativeDecoder(model, int8=int8).core
        self._rows, self._reader = Rows(core, slots), Rows(core, 1)
        self._neurons = [(layer, neuron) for layer in range(core.L) for neuron in range(core.N)]

    def supports(self, options: Options) -> bool:
        """Always true: every option is supported."""
        return True

    def read(self, context: Context, elapsed: float = 1.0, score: int | None = None) -> None:
        """The same as `Engine.read`."""
        end = min(context.at + SLICE, len(context.ids) - 1)
        ids, following = context.ids[context.at : end], context.ids[context.at + 1 : end + 1]
        slot = self._reader.join(Choice(), *_stacked(context.state), elapsed=elapsed)
        try:
            if score is not None and context.memory is not None:
                before = context.ids[: context.at][-LONGEST:].tolist()
                self._reader.mix(slot, context.memory.native(), context.memory.contexts_of(before)[0])
            work = Work(slot, ids, logprobs=score is not None, targets=None if score is None else following)
            (written,) = self._reader.run([work], best=score or 0)
            context.state = _state(*self._reader.state(slot))
        finally:
            self._reader.leave(slot)
        if score is not None:
            if written.logprobs is None or bool(np.isnan(written.logprobs).any()):
                raise LogitsError("the model's logits are NaN or infinite: its weights are broken, or the state before")
            context.scored += [_scored(written, place, score) for place in range(len(ids))]
        context.at = end

    def draw(self, rows: list[RowState], count: int) -> list[Drawn | LogitsError]:
        """The same as `Engine.draw`."""
        work = [self._work(row, count) for row in rows]
        best = max((row.options.logprobs or 0 for row in rows), default=0)
        written = self._rows.run(work, best=best)
        return [self._drawn(row, one) for row, one in zip(rows, written, strict=True)]

    def release(self, row: RowState) -> None:
        """The same as `Engine.release`."""
        if row.slot is not None:
            self._rows.leave(row.slot)
            row.slot = None

    def _work(self, row: RowState, count: int) -> Work:
        options = row.options
        if row.slot is None:
            row.slot = self._join(row)
        count = min(count, options.sampling.max_tokens - row.drawn)
        if options.clamps:
            starts = {clamp.start for clamp in options.clamps}
            if row.drawn in starts:
                self._rows.hold(row.slot, [_hold(clamp) for clamp in options.clamps if clamp.start <= row.drawn])
            count = min([count, *(start - row.drawn for start in starts if start > row.drawn)])
        uniform = None if options.sampling.greedy else _numbers(row, count)
        return Work(row.slot, [row.context.last], count, uniform, logprobs=options.logprobs is not None)

    def _join(self, row: RowState) -> int:
        seen = [] if row.seen is None else row.seen[0].nonzero()[:, 0].tolist()
        slot = self._rows.join(_choice(row), *_stacked(row.context.state), elapsed=row.options.elapsed, seen=seen)
        if (memory := row.options.memory) is not None:
            before = row.context.ids[:-1][-LONGEST:].tolist()
            self._rows.mix(slot, memory.native(), memory.contexts_of(before)[0])
        if row.options.observe:
            self._rows.watch(slot, self._neurons)
        return slot

    def _drawn(self, row: RowState, written: Written) -> Drawn | LogitsError:
        tokens = written.tokens.tolist()
        if not tokens:
            return broken_logits(0)
        options, scored, tau = row.options, None, None
        if options.logprobs is not None:
            scored = [_scored(written, place, options.logprobs) for place in range(len(tokens))]
        if written.watched is not None:
            tau = torch.from_numpy(written.watched[: len(tokens), :, 0].copy())
        row.drawn += len(tokens)
        if not options.sampling.greedy:
            row.numbers = row.numbers[len(tokens) :]
        assert row.slot is not None
        state = _state(*self._rows.state(row.slot)) if row.keep else row.context.state
        row.context.advance(state, tokens[-1])
        return Drawn(tokens, scored, tau)


def _numbers(row: RowState, count: int) -> Float[np.ndarray, " _"]:
    """The next random numbers of a row; they are taken out of its stream in blocks, which is faster."""
    while len(row.numbers) < count:
        row.numbers = np.concatenate([row.numbers, row.uniform.ahead(DRAW_BLOCK)[0].numpy()])
        row.uniform.skip(DRAW_BLOCK)
    return row.numbers[:count]


def _choice(row: RowState) -> Choice:
    """The options of a row as the decoder takes them."""
    options, plain = row.options, native_choice(row.options.sampling, row.eos_token_id)
    banned = [token for token, value in options.logit_bias if value <= FORBIDDEN]
    return replace(
        plain,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias={token: value for token, value in options.logit_bias if value > FORBIDDEN},
        forbidden=[*banned, *plain.forbidden],
    )


def _hold(clamp: Clamp) -> Hold:
    return Hold(clamp.neuron.layer, clamp.neuron.index, clamp.value, clamp.tau_factor)


def _scored(written: Written, place: int, top: int) -> Scored:
    assert written.logprobs is not None
    likeliest: list[tuple[int, float]] = []
    if written.likeliest is not None and written.likeliest_logprobs is not None and top:
        ids, values = written.likeliest[place, :top].tolist(), written.likeliest_logprobs[place, :top]
        likeliest = list(zip(ids, np.maximum(values, SMALLEST_LOGPROB).tolist(), strict=True))
    return Scored(max(float(written.logprobs[place]), SMALLEST_LOGPROB), likeliest)


def _stacked(state: LiquidState) -> tuple[Float[Tensor, "L N"], Float[Tensor, "L _ D"]]:
    return torch.cat(state.neurons), torch.cat(state.conv_state)


def _state(neurons: Float[Tensor, "L N"], columns: Float[Tensor, "L _ D"]) -> LiquidState:
    return LiquidState(tuple(neurons.split(1)), tuple(columns.split(1)))
