"""The interface of engines, which read the tokens of rows and draw new ones for the scheduler.

A row is one text that is being generated. The result of a row does not depend, to the bit, on the other rows of a call.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import LogitsError
from ltc_textgen.generation.sampling import UniformStreams
from ltc_textgen.memory import Mixture
from ltc_textgen.memory.mixture import Contexts
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Bool, Float, Int, Tensor

SLICE = 512
"""Tokens of a prompt that are read in one call, alongside rows that draw."""


@dataclass(frozen=True)
class Neuron:
    """One neuron: the number of its layer, and its number there, both from 0."""

    layer: int
    index: int


@dataclass(frozen=True)
class Clamp:
    """An intervention on one neuron.

    Args:
        neuron: Which.
        value: Its state is held at this value; None leaves it free.
        tau_factor: Its time constant is multiplied by this, > 0.
        start: Drawn tokens before the clamp holds; 0 holds it from the first on. A prompt is read without clamps.
    """

    neuron: Neuron
    value: float | None = None
    tau_factor: float = 1.0
    start: int = 0


@dataclass(frozen=True)
class Options:
    """How tokens of a row are drawn and what is reported of them.

    Args:
        sampling: Temperature, filters, penalty, forbidden EOS token, number of tokens. Seed and stop strings are not
            the engine's.
        presence_penalty: Subtracted from the logits of tokens that were drawn before.
        frequency_penalty: The same, times how often each was drawn.
        logit_bias: Token ids and what is added to their logits.
        logprobs: Report the log-probability of each token, and of this many likeliest ones; None reports nothing.
        elapsed: Time from each token to the next, in token time.
        clamps: Interventions on neurons.
        memory: N-gram memory that is mixed with the network's distribution; None for the network alone.
        observe: Report the time constant of every neuron.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    elapsed: float = 1.0
    clamps: tuple[Clamp, ...] = ()
    memory: Mixture | None = None
    observe: bool = False


class Scored(NamedTuple):
    """Log-probabilities of one token by the model with its n-gram memory, before any sampling option.

    Args:
        logprob: Log-probability of the token.
        top: Ids and log-probabilities of the likeliest tokens, likeliest first.
    """

    logprob: float
    top: list[tuple[int, float]]


class Drawn(NamedTuple):
    """Some consecutive tokens of one row.

    Args:
        tokens: Their ids.
        scored: With `Options.logprobs`: of each token.
        tau: With `Options.observe`: time constant of every neuron, layer after layer, in token time, when the token
            before each of these was read.
    """

    tokens: list[int]
    scored: list[Scored] | None = None
    tau: Float[Tensor, "S neurons"] | None = None

    def first(self, count: int) -> "Drawn":
        """The first tokens alone."""
        scored = None if self.scored is None else self.scored[:count]
        return Drawn(self.tokens[:count], scored, None if self.tau is None else self.tau[:count])


@dataclass(eq=False)
class Context:
    """What was read, and what is still to be read before a token can be drawn.

    Args:
        state: State before the token at `at`.
        ids: Token ids, the last of which predicts the token to draw and is read by `Engine.draw`.
        at: Tokens of `ids` that were read.
        scored: With logprobs of the prompt: of each token after the first.
        memory: N-gram memory that joins the network where tokens are scored.
    """

    state: LiquidState
    ids: Int[np.ndarray, " T"]
    at: int = 0
    scored: list[Scored] = field(default_factory=list)
    memory: Mixture | None = None

    @property
    def ready(self) -> bool:
        """Whether all but the last token were read."""
        return self.at == len(self.ids) - 1

    @property
    def last(self) -> int:
        """The token that is read next, once `ready`."""
        return int(self.ids[-1])

    def fork(self) -> "Context":
        """The context of another row; tensors are shared, for no one changes them."""
        return Context(self.state, self.ids, self.at, self.scored, self.memory)

    def advance(self, state: LiquidState, token: int) -> None:
        """Continue after the last token was read and another one drawn."""
        self.state, self.ids, self.at = state, np.array([token], np.int64), 0


@dataclass(eq=False)
class RowState:
    """The state of a row between calls of an engine.

    Args:
        context: What it has read.
        options: How it draws.
        uniform: Its random numbers, of one sample.
        eos_token_id: Token that ends a document.
        seen: Tokens that the repetition penalty applies to, (1, V); None without one.
        counts: How often each token was drawn, (1, V); None without a penalty by count.
        contexts: The last tokens, as the memory looks them up, (1, _); None without one.
        drawn: Tokens drawn so far.
        keep: Keep `context.state` up to date: it will be asked for.
        slot: Where the engine has it, between the first draw and `Engine.release`.
        numbers: Random numbers that the engine has taken out of `uniform` and not used yet.
    """

    context: Context
    options: Options
    uniform: UniformStreams
    eos_token_id: int
    seen: Bool[Tensor, "1 V"] | None = None
    counts: Int[Tensor, "1 V"] | None = None
    contexts: Contexts | None = None
    drawn: int = 0
    keep: bool = False
    slot: int | None = None
    numbers: Float[np.ndarray, " _"] = field(default_factory=lambda: np.empty(0))


@runtime_checkable
class Engine(Protocol):
    """Reads and draws for the rows of one model. All calls come from one thread."""

    name: str
    """torch, native or int8."""

    def supports(self, options: Options) -> bool:
        """Whether rows with these options can be drawn here."""

    def read(self, context: Context, elapsed: float = 1.0, score: int | None = None) -> None:
        """Read the next `SLICE` tokens of a context, but never its last.

        Args:
            context: Changed in place.
            elapsed: Time from each token to the next.
            score: Append to `context.scored`, with this many likeliest tokens; None does not score.

        Raises:
            LogitsError: If they are wanted, and the model's logits are NaN or infinite.
        """

    def release(self, row: RowState) -> None:
        """Free the slot of a row that has drawn its last token."""

    def draw(self, rows: list[RowState], count: int) -> list[Drawn | LogitsError]:
        """Draw up to `count` tokens of each row, at least one, but never more than its `max_tokens` in all.

        Tokens after the EOS token have no meaning. A row with NaN or infinite logits gives a LogitsError.
        """
