"""What draws the next tokens of all samples: PyTorch one token at a time, or the native decoder many per call.

A writer has read the prompt when it is made. `draw` gives the next tokens of each sample, one column per token;
`keep` goes on with some of the samples.
"""

import time
from dataclasses import fields
from typing import Literal, Protocol, runtime_checkable

import torch

from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.generation.native import NativeDecoder, stacked
from ltc_textgen.generation.sampling import UniformStreams, broken_logits, draw, shape_logits
from ltc_textgen.kernels.decoder import Choice
from ltc_textgen.model.network import LiquidNetwork, read
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Bool, Float, Int, Tensor

Engine = Literal["auto", "torch", "native", "int8"]

PATIENCE = 0.008
"""Seconds that a call of the native decoder should take at most: how long text waits to be shown."""

MOST = 256
"""Tokens of a sample drawn in one call at most."""

SHORT = 32
"""Tokens of a prompt up to which the native decoder reads it; PyTorch reads longer ones faster."""

NATIVE_OPTIONS = {field.name for field in fields(Choice)} | {
    "max_tokens",
    "seed",
    "stop",
    "ignore_separator",
    "num_samples",
}
"""Fields of `SamplingConfig` that the native decoder, or the code around both engines, implements."""


def unsupported(sampling: SamplingConfig) -> list[str]:
    """Sampling options that are set and that the native decoder does not implement."""
    return sorted(sampling.model_dump(exclude_defaults=True).keys() - NATIVE_OPTIONS)


@runtime_checkable
class Writer(Protocol):
    """See the module."""

    def draw(self) -> Int[Tensor, "B S"]:
        """The next tokens of each sample, at least one."""

    def keep(self, rows: list[int]) -> None:
        """Go on with these samples only."""


def open_writer(
    model: LiquidNetwork,
    separator: int,
    prompt: list[int],
    sampling: SamplingConfig,
    seed: int,
    state: LiquidState | None = None,
    engine: Engine = "auto",
) -> Writer:
    """A writer of `sampling.num_samples` samples.

    Args:
        model: Network, in evaluation mode.
        separator: Token at which a sample ends.
        prompt: Token ids, at least one.
        sampling: How to draw.
        seed: Seed of the draws.
        state: State before the prompt, of one sequence; that of a fresh text if None.
        engine: See `decode.generate_stream`.

    Raises:
        UsageError: If the native decoder is asked for and does not support this model or a sampling option.
    """
    decoder = None
    if (options := unsupported(sampling)) and engine not in ("auto", "torch"):
        raise UsageError(f"engine {engine}: does not support {', '.join(options)}; use engine torch")
    if engine != "torch" and not options:
        try:
            decoder = NativeDecoder(model, int8=engine == "int8")
        except UsageError:
            if engine != "auto":
                raise
    if decoder is None:
        return TorchWriter(model, separator, prompt, sampling, seed, state)
    return NativeWriter(decoder, model, separator, prompt, sampling, seed, state)


class TorchWriter:
    """The readable reference, for every model and device."""

    def __init__(
        self,
        model: LiquidNetwork,
        separator: int,
        prompt: list[int],
        sampling: SamplingConfig,
        seed: int,
        state: LiquidState | None = None,
    ) -> None:
        self._model, self._sampling, self._separator = model, sampling, separator
        hidden, state = read(model, torch.tensor([prompt]), state)
        fork = torch.zeros(sampling.num_samples, dtype=torch.int64)
        self._hidden: Float[Tensor, "B D"] | None = hidden.expand(len(fork), -1)
        self._state, self._last = state.select(fork), fork
        self._streams = UniformStreams(seed, range(sampling.num_samples))
        self._seen = seen_in(prompt, separator, model.settings.vocabulary, sampling)
        if self._seen is not None:
            self._seen = self._seen.to(model.embedding.weight.device)

    @torch.inference_mode()
    def draw(self) -> Int[Tensor, "B 1"]:
        """The next token of each sample, on the CPU."""
        if self._hidden is None:
            self._hidden, self._state = read(self._model, self._last[:, None], self._state)
        logits = self._model.head.logits(self._hidden)
        logits = shape_logits(logits, self._sampling, self._seen, self._separator)
        greedy = self._sampling.temperature == 0
        self._last = logits.argmax(dim=1).cpu() if greedy else draw(logits, self._streams.next())
        if self._seen is not None:
            self._seen.scatter_(1, self._last[:, None].to(self._seen.device), True)
        self._hidden = None
        return self._last[:, None]

    def keep(self, rows: list[int]) -> None:
        """Go on with these samples only."""
        index = torch.tensor(rows, dtype=torch.int64)
        self._state, self._last = self._state.select(index), self._last[index]
        self._streams.keep(rows)
        if self._seen is not None:
            self._seen = self._seen[rows]


class NativeWriter:
    """The native decoder. It draws what the reference draws, but where rounding tips a draw that was on the edge."""

    def __init__(
        self,
        native: NativeDecoder,
        model: LiquidNetwork,
        separator: int,
        prompt: list[int],
        sampling: SamplingConfig,
        seed: int,
        state: LiquidState | None = None,
    ) -> None:
        self._decoder, self._samples, self._left, self._count = (
            native.core,
            sampling.num_samples,
            sampling.max_tokens,
            1,
        )
        state, before = native.initial_state(1) if state is None else state, torch.tensor([prompt[:-1]])
        native.require(state, 1)
        if len(prompt) > SHORT:
            _, state = read(model, before, state)
        elif len(prompt) > 1:
            state = native.read(before, state)
        self._ids = torch.full((self._samples, 1), prompt[-1])
        self._state = stacked(state.select(torch.zeros(self._samples, dtype=torch.int64)))
        self._choice = Choice(
            *(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty),
            forbidden=separator if sampling.ignore_separator else None,
            stops=(separator,),
        )
        self._streams = UniformStreams(seed, range(self._samples))
        self._seen = seen_in(prompt, separator, model.settings.vocabulary, sampling)
        self._broken: int | None = None

    def draw(self) -> Int[Tensor, "B S"]:
        """The next tokens of each sample: one at first, then as many as take a few milliseconds.

        Raises:
            LogitsError: If no token can be drawn because the model's weights are broken.
        """
        if self._broken is not None:
            raise broken_logits(self._broken)
        count = min(self._count, self._left)
        uniform = self._streams.ahead(count) if self._choice.temperature else None
        start = time.perf_counter()
        drawn = self._decoder.draw(self._ids, *self._state, self._choice, count, uniform, self._seen)
        self._state, self._broken = (drawn.neurons, drawn.columns), drawn.broken
        done = drawn.tokens.shape[1]
        if self._broken is not None and not done:
            raise broken_logits(self._broken)
        if time.perf_counter() - start < PATIENCE / 2:
            self._count = min(2 * self._count, MOST)
        if uniform is not None:
            self._streams.skip(done)
        self._ids, self._left = drawn.tokens[:, -1:], self._left - done
        return drawn.tokens

    def keep(self, rows: list[int]) -> None:
        """Go on with these samples only."""
        index = torch.tensor(rows, dtype=torch.int64)
        self._ids = self._ids[index]
        self._state = (self._state[0].index_select(1, index), self._state[1].index_select(1, index))
        self._streams.keep(rows)
        if self._seen is not None:
            self._seen = self._seen[index].contiguous()


def seen_in(prompt: list[int], separator: int, vocabulary: int, sampling: SamplingConfig) -> Bool[Tensor, "B V"] | None:
    """What the prompt makes less likely, for each sample; None without a penalty. V bits a sample."""
    if sampling.repetition_penalty == 1:
        return None
    seen = torch.zeros(sampling.num_samples, vocabulary, dtype=torch.bool)
    # The separator that stands for an empty prompt is no text that could be repeated.
    seen[:, [token for token in prompt if token != separator]] = True
    return seen
