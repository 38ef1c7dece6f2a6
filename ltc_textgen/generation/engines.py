"""The two engines that draw tokens: PyTorch, one token at a time, and the native decoder, many tokens per call.

An engine reads the prompt when it is made. `draw` returns the next tokens of every sample, one column per token;
`keep` drops the samples that have ended.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol, runtime_checkable

import torch

from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.generation.native import NativeDecoder, gathered
from ltc_textgen.generation.sampling import UniformStreams, broken_logits, draw, shape_logits
from ltc_textgen.kernels.decoder_rows import Choice, Work
from ltc_textgen.memory import Mixture
from ltc_textgen.model.network import LiquidNetwork, read
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Bool, Int, Tensor

EngineName = Literal["auto", "torch", "native", "int8"]

MAX_SECONDS = 0.008
"""Longest time that a call of the native decoder should take, since no text is shown before it returns."""

MAX_TOKENS_PER_CALL = 256

NATIVE_OPTIONS = {field.name for field in fields(Choice)} | {
    *("max_tokens", "seed", "stop", "ignore_eos", "num_samples")
}
"""Fields of `SamplingConfig` that the native decoder, or the code around both engines, implements."""


@dataclass(frozen=True)
class Request:
    """What is to be generated.

    Args:
        prompt: Token ids, at least one.
        sampling: How to draw, and how many samples of how many tokens.
        seed: Seed of the draws, in [0, 2**63).
        eos_token_id: Token at which a sample ends.
        state: State before the prompt, of one sequence; the initial state if None.
        memory: N-gram memory that is mixed with the network's distribution; None, or one whose `share` is 0, for the
            network alone.
        before: Tokens before the prompt, which the state has read: the memory looks back at them.
    """

    prompt: list[int]
    sampling: SamplingConfig
    seed: int
    eos_token_id: int
    state: LiquidState | None = None
    memory: Mixture | None = None
    before: Sequence[int] = ()

    def fork(self) -> Int[Tensor, " B"]:
        """Batch rows from which the samples start: row 0 for each."""
        return torch.zeros(self.sampling.num_samples, dtype=torch.int64)

    def streams(self) -> UniformStreams:
        """The random numbers of each sample."""
        return UniformStreams(self.seed, range(self.sampling.num_samples))

    def seen(self, vocabulary: int) -> Bool[Tensor, "B V"] | None:
        """Tokens that the repetition penalty applies to, for each sample; None without a penalty."""
        if self.sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(self.sampling.num_samples, vocabulary, dtype=torch.bool)
        # The EOS token that stands for an empty prompt is no text that could be repeated.
        seen[:, [token for token in self.prompt if token != self.eos_token_id]] = True
        return seen


@runtime_checkable
class Engine(Protocol):
    """Draws the tokens of all samples of a request (see the module)."""

    def draw(self) -> Int[Tensor, "B S"]:
        """The next tokens of each sample, at least one, on the CPU."""

    def keep(self, rows: list[int]) -> None:
        """Continue with these samples only."""


def unsupported(sampling: SamplingConfig) -> list[str]:
    """Sampling options that are set and that the native decoder does not implement."""
    return sorted(sampling.model_dump(exclude_defaults=True).keys() - NATIVE_OPTIONS)


def open_engine(model: LiquidNetwork, request: Request, engine: EngineName = "auto") -> Engine:
    """An engine that has read the prompt.

    Args:
        model: Network, in evaluation mode.
        request: What to generate.
        engine: auto takes the native decoder where it supports the model and the options, and PyTorch elsewhere.

    Raises:
        UsageError: If the native decoder is asked for and does not support this model or a sampling option.
    """
    options = unsupported(request.sampling)
    if options and engine not in ("auto", "torch"):
        raise UsageError(f"engine {engine}: does not support {', '.join(options)}; use engine torch")
    if engine != "torch" and not options:
        try:
            return NativeEngine(NativeDecoder(model, int8=engine == "int8"), request)
        except UsageError:
            if engine != "auto":
                raise
    return TorchEngine(model, request)


class TorchEngine:
    """The reference engine, for every model and device."""

    def __init__(self, model: LiquidNetwork, request: Request) -> None:
        self._model, self._request = model, request
        fork = request.fork()
        before = torch.tensor([request.prompt[:-1]])
        state = model.initial_state(1).detach() if request.state is None else request.state
        state = read(model, before, state)[1] if len(request.prompt) > 1 else state
        self._last = torch.full_like(fork, request.prompt[-1])
        self._state = state.select(fork)
        self._memory = request.memory if request.memory is not None and request.memory.share else None
        if self._memory is not None:
            self._contexts = self._memory.contexts_of([*request.before, *request.prompt], len(self._last))
        self._streams = request.streams()
        self._seen = request.seen(model.settings.vocabulary)
        if self._seen is not None:
            self._seen = self._seen.to(model.embed_tokens.weight.device)

    @torch.inference_mode()
    def draw(self) -> Int[Tensor, "B 1"]:
        """The next token of each sample, on the CPU.

        Raises:
            LogitsError: If the model's output is no distribution.
        """
        hidden, self._state = read(self._model, self._last[:, None], self._state)
        sampling = self._request.sampling
        logits = self._model.lm_head.logits(hidden)
        if self._memory is not None:
            mixed = self._memory.apply(logits.float().cpu().numpy(), self._contexts)
            logits = torch.from_numpy(mixed).to(logits.device)
        logits = shape_logits(logits, sampling, self._seen, self._request.eos_token_id)
        self._last = logits.argmax(dim=1).cpu() if sampling.greedy else draw(logits, self._streams.next())
        if self._seen is not None:
            self._seen.scatter_(1, self._last[:, None].to(self._seen.device), True)
        if self._memory is not None:
            self._contexts = self._memory.advance(self._contexts, self._last[:, None].numpy())
        return self._last[:, None]

    def keep(self, rows: list[int]) -> None:
        """Continue with these samples only."""
        index = torch.tensor(rows, dtype=torch.int64)
        self._state, self._last = self._state.select(index), self._last[index]
        self._streams.keep(rows)
        if self._memory is not None:
            self._contexts = self._contexts[rows]
        if self._seen is not None:
            self._seen = self._seen[rows]


class NativeEngine:
    """The native decoder. It draws the reference's tokens, except where rounding changes a draw near a boundary."""

    def __init__(self, native: NativeDecoder, request: Request) -> None:
        choice = native_choice(request.sampling, request.eos_token_id)
        fork = request.fork()
        self._rows, self._slots = native.rows(_read_prompt(native, request).select(fork), choice)
        for slot in self._slots:
            # The EOS token that stands for an empty prompt is no text that could be repeated.
            self._rows.see(slot, [token for token in request.prompt if token != request.eos_token_id])
        if request.memory is not None and request.memory.share:
            mixture, (context,) = (
                request.memory.native(),
                request.memory.contexts_of([*request.before, *request.prompt[:-1]]),
            )
            for slot in self._slots:
                self._rows.mix(slot, mixture, context)
        self._last = [[request.prompt[-1]] for _ in self._slots]
        self._streams = None if choice.temperature == 0 else request.streams()
        self._tokens_left, self._tokens_per_call = request.sampling.max_tokens, 1
        self._broken: int | None = None

    def draw(self) -> Int[Tensor, "B S"]:
        """The next tokens of each sample: one at first, then as many as take a few milliseconds; -1 after an end.

        Raises:
            LogitsError: If no token can be drawn because the model's output is no distribution.
        """
        if self._broken is not None:
            raise broken_logits(self._broken)
        count, rows = min(self._tokens_per_call, self._tokens_left), len(self._slots)
        numbers = [None] * rows if self._streams is None else list(self._streams.ahead(count).numpy())
        start = time.perf_counter()
        drawn = gathered(
            self._rows.run([Work(*row) for row in zip(self._slots, self._last, [count] * rows, numbers, strict=True)]),
            count,
        )
        self._broken, done = drawn.broken, count
        if self._broken is not None:
            done = drawn.done[self._broken]
            if not done:
                raise broken_logits(self._broken)
        if time.perf_counter() - start < MAX_SECONDS / 2:
            self._tokens_per_call = min(2 * self._tokens_per_call, MAX_TOKENS_PER_CALL)
        if self._streams is not None:
            self._streams.skip(done)
        self._tokens_left -= done
        self._last = [tokens[n - 1 : n] for tokens, n in zip(drawn.tokens.tolist(), drawn.done, strict=True)]
        return drawn.tokens[:, :done]

    def keep(self, rows: list[int]) -> None:
        """Continue with these samples only."""
        for row in set(range(len(self._slots))) - set(rows):
            self._rows.leave(self._slots[row])
        self._slots, self._last = [self._slots[row] for row in rows], [self._last[row] for row in rows]
        if self._streams is not None:
            self._streams.keep(rows)


def native_choice(sampling: SamplingConfig, eos_token_id: int) -> Choice:
    """The sampling options as the native decoder takes them; a row ends at the EOS token."""
    return Choice(
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        forbidden=(eos_token_id,) if sampling.ignore_eos else (),
        stops=(eos_token_id,),
    )


def _read_prompt(native: NativeDecoder, request: Request) -> LiquidState:
    """The state before the last token of the prompt, of one sequence."""
    state = native.initial_state(1) if request.state is None else request.state
    native.require(state, 1)
    return native.read(torch.tensor([request.prompt[:-1]]), state) if len(request.prompt) > 1 else state
