"""What the scheduler works on: a job is one prompt and the rows that continue it; its pieces go to a channel."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ltc_textgen.generation.sample_text import SampleText
from ltc_textgen.generation.sampling import UniformStreams
from ltc_textgen.memory.ngrams import LONGEST
from ltc_textgen.model.state import LiquidState
from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.engine import Context, Drawn, Engine, Options, RowState, Scored

Reason = Literal["stop", "length", "abort"]

FULL = 1 << 12
"""Tokens waiting in a channel above which its rows pause."""


NOTHING = Drawn([])


@dataclass(frozen=True, eq=False)
class Piece:
    """The next part of one choice: text that can be shown, tokens that were drawn, and why it ended.

    Args:
        index: Number of the choice in the request.
        text: Text to append.
        drawn: Tokens since the last piece.
        offsets: Where the text of each scored token begins, in characters after the prompt.
        reason: Set in the last piece of a choice.
        stop: The stop string that ended it, or "separator".
        prompt: Scores of the prompt's tokens, in the first piece, if they were asked for.
        state: State after the choice, in its last piece: that before `last`, and the last token.
        error: The choice ended because the model failed.
    """

    index: int
    text: str = ""
    drawn: Drawn = NOTHING
    offsets: Sequence[int] = ()
    reason: Reason | None = None
    stop: str | None = None
    prompt: list[Scored] | None = None
    state: tuple[LiquidState, int] | None = None
    error: ApiError | None = None


class Channel:
    """Carries pieces from the engine thread to a handler on the event loop.

    Args:
        loop: The event loop of the handler.
        resume: Called when a full channel has been emptied.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, resume: Callable[[], None]) -> None:
        self._loop, self._resume = loop, resume
        self._pieces: deque[Piece] = deque()
        self._arrived, self._ended = asyncio.Event(), asyncio.Event()
        self._signalled = False
        self._put = self._taken = 0  # tokens; each is changed by one thread only

    @property
    def full(self) -> bool:
        """Whether the handler is so far behind that its rows must wait."""
        return self._put - self._taken >= FULL

    def put(self, piece: Piece) -> None:
        """Add a piece; called by the engine thread."""
        self._put += len(piece.drawn.tokens)
        self._pieces.append(piece)
        if not self._signalled:
            self._signalled = True
            self._signal(self._arrived)
        if piece.reason is not None or piece.error is not None:
            self._signal(self._ended)

    async def rest(self, seconds: float) -> None:
        """Let pieces gather for some time, or until a choice has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        self._ended.clear()

    def _signal(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop was closed
            self._loop.call_soon_threadsafe(event.set)

    async def take(self) -> list[Piece]:
        """All pieces that have arrived, at least one."""
        taken: list[Piece] = []
        while not taken:
            await self._arrived.wait()
            self._arrived.clear()
            self._signalled = False
            while self._pieces:
                taken.append(self._pieces.popleft())
        may_wait = self._put - self._taken >= FULL // 2  # more may arrive while this runs
        self._taken += sum(len(piece.drawn.tokens) for piece in taken)
        if may_wait:
            self._resume()
        return taken


@dataclass(eq=False)
class Row:
    """One choice of a job.

    Args:
        job: Its job.
        index: Number of the choice in the request.
        state: What the engine keeps.
        text: Its text so far.
        begun: Whether it has given a piece.
    """

    job: "Job"
    index: int
    state: RowState
    text: SampleText
    begun: bool = False


@dataclass(eq=False)
class Job:
    """A prompt and its samples.

    Args:
        model: Name of the model.
        engine: What computes it.
        context: The prompt, and the state before it.
        options: How its rows draw.
        seed: Seed of its rows; sample i draws from (seed, i).
        text: A sample of the prompt that has no text yet.
        eos_token_id: Token that ends a document.
        vocabulary: V.
        channel: Where its pieces go.
        first: Number of its first choice in the request.
        samples: How many rows.
        new_tokens: Tokens of the prompt that the request brought.
        seen: Tokens that a repetition penalty applies to.
        score: Report the log-probabilities of the prompt's tokens, with this many likeliest ones.
        keep_state: Report the state after each choice.
        keys: Names of its prefixes in the cache; without any it is read from its beginning.
        cached: Tokens of the prompt that were not read because the cache had the state after them.
        started: Rows that have been given a slot.
        cancelled: Whether its client has gone.
        arrived: When the request came, by `time.perf_counter`.
    """

    model: str
    engine: Engine
    context: Context
    options: Options
    seed: int
    text: SampleText
    eos_token_id: int
    vocabulary: int
    channel: Channel
    first: int = 0
    samples: int = 1
    new_tokens: int = 0
    seen: list[int] = field(default_factory=list)
    score: int | None = None
    keep_state: bool = False
    keys: list[bytes] = field(default_factory=list)
    cached: int = 0
    started: int = 0
    cancelled: bool = False
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def waiting(self) -> int:
        """Rows without a slot."""
        return self.samples - self.started

    def row(self, number: int) -> Row:
        """The row of one sample, once the prompt was read."""
        options, seen, counts = self.options, None, None
        if options.sampling.repetition_penalty != 1:
            seen = torch.zeros(1, self.vocabulary, dtype=torch.bool)
            seen[0, self.seen] = True
        if options.presence_penalty or options.frequency_penalty:
            counts = torch.zeros(1, self.vocabulary, dtype=torch.int64)
        contexts = None if options.memory is None else options.memory.contexts_of(self.context.ids[-LONGEST:].tolist())
        uniform = UniformStreams(self.seed, range(number, number + 1))
        state = RowState(self.context.fork(), options, uniform, self.eos_token_id, seen, counts, contexts)
        state.keep = self.keep_state
        return Row(self, self.first + number, state, self.text.fork())
