"""The scheduler with an engine that counts: fairness, pauses, and failures of one row or of all."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from openai._streaming import SSEDecoder

from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.train_tokenizer import character_tokenizer
from ltc_textgen.errors import LogitsError
from ltc_textgen.generation.sample_text import SampleText
from ltc_textgen.model.state import LiquidState
from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.engine import SLICE, Context, Drawn, Options, RowState
from ltc_textgen.serve.jobs import FULL, Channel, Job, Piece
from ltc_textgen.serve.metrics import Metrics
from ltc_textgen.serve.prefix_cache import PrefixCache
from ltc_textgen.serve.scheduler import Scheduler
from ltc_textgen.serve.streaming import DONE, PING, event

TOKENIZER = character_tokenizer("abc")
STATE = LiquidState((torch.zeros(1, 4),))


class Counting:
    """Writes "abcabc..."; a row whose seed is 13 has no logits, one whose seed is 14 breaks the engine."""

    name = "torch"

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def supports(self, options: Options) -> bool:
        return True

    def read(self, context: Context, elapsed: float = 1.0, score: int | None = None) -> None:
        end = min(context.at + SLICE, len(context.ids) - 1)
        self.calls.append(("read", end - context.at))
        context.at = end

    def release(self, row: RowState) -> None:
        self.calls.append(("release", 1))

    def draw(self, rows: list[RowState], count: int) -> list[Drawn | LogitsError]:
        self.calls.append(("draw", len(rows)))
        results: list[Drawn | LogitsError] = []
        for row in rows:
            kind = row.context.ids[0].item()
            if kind == 2:
                raise RuntimeError("the engine is broken")
            if kind == 1:
                results.append(LogitsError("no logits"))
                continue
            n = min(count, row.options.sampling.max_tokens - row.drawn)
            results.append(Drawn([0] * n))
            row.drawn += n
            row.context.advance(STATE, 0)
        return results


def job(engine: Counting, channel: Channel, tokens: int = 5, prompt: int = 1, kind: int = 0, samples: int = 1) -> Job:
    ids = np.array([kind, *[0] * (prompt - 1)], np.int64)
    sampling = SamplingConfig(max_tokens=tokens)
    return Job(
        model=f"model {kind}",
        engine=engine,
        context=Context(STATE, ids),
        options=Options(sampling),
        seed=0,
        text=SampleText(TOKENIZER, [0], sampling),
        eos_token_id=TOKENIZER.eos_token_id,
        vocabulary=TOKENIZER.vocab_size,
        channel=channel,
        samples=samples,
        new_tokens=prompt,
    )


async def ended(channel: Channel, count: int = 1) -> list[Piece]:
    """The pieces until so many choices have ended."""
    pieces: list[Piece] = []
    while sum(piece.reason is not None or piece.error is not None for piece in pieces) < count:
        pieces += await channel.take()
    return pieces


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler(4, 8, Metrics(), PrefixCache(0))
    made.start()
    yield made
    made.close()


def with_channel(scheduler: Scheduler, test: Callable[[Callable[[], Channel]], Any]) -> Any:
    """Run a coroutine that makes channels."""

    async def run() -> Any:
        return await test(lambda: Channel(asyncio.get_running_loop(), scheduler.wake))

    return asyncio.run(run())


def test_a_row_that_fails_leaves_the_others_alone(scheduler: Scheduler) -> None:
    engine = Counting()

    async def test(channel: Callable[[], Channel]) -> None:
        good, bad = channel(), channel()
        scheduler.submit([job(engine, good), job(engine, bad, kind=1)])
        assert "".join(piece.text for piece in await ended(good)) == "aaaaa"
        (failed,) = await ended(bad)
        assert failed.error is not None
        assert (failed.error.status, failed.error.headers) == (500, {"x-should-retry": "false"})
        assert list(scheduler.broken) == ["model 1"]

    with_channel(scheduler, test)


def test_an_engine_that_fails_does_not_end_the_thread(scheduler: Scheduler) -> None:
    engine = Counting()

    async def test(channel: Callable[[], Channel]) -> None:
        bad = channel()
        scheduler.submit([job(engine, bad, kind=2, samples=3)])
        assert sum(piece.error is not None for piece in await ended(bad, 3)) == 3
        good = channel()
        scheduler.submit([job(engine, good)])
        assert (await ended(good))[-1].reason == "length"
        assert scheduler.failure is None
        assert engine.calls.count(("release", 1)) == 4

    with_channel(scheduler, test)


def test_a_long_prompt_is_read_between_calls_that_draw(scheduler: Scheduler) -> None:
    engine = Counting()

    async def test(channel: Callable[[], Channel]) -> None:
        writing, reading = channel(), channel()
        scheduler.submit([job(engine, writing, tokens=100_000), job(engine, reading, prompt=20 * SLICE)])
        await ended(reading)
        kinds = [kind for kind, _ in engine.calls]
        reads = [place for place, kind in enumerate(kinds) if kind == "read"]
        assert len(reads) == 20
        assert all("draw" in kinds[a:b] for a, b in pairwise(reads))
        scheduler.abort()

    with_channel(scheduler, test)


def test_a_row_that_is_not_read_waits_and_the_others_continue(scheduler: Scheduler) -> None:
    engine = Counting()

    async def test(channel: Callable[[], Channel]) -> None:
        slow, fast = channel(), channel()
        scheduler.submit([job(engine, slow, tokens=20 * FULL)])
        while not slow.full:
            await asyncio.sleep(0)
        scheduler.submit([job(engine, fast, tokens=2 * FULL)])
        pieces = await ended(fast)
        assert sum(len(piece.drawn.tokens) for piece in pieces) == 2 * FULL
        held = await slow.take()
        assert FULL <= sum(len(piece.drawn.tokens) for piece in held) < 2 * FULL
        assert sum(len(piece.drawn.tokens) for piece in [*held, *await ended(slow)]) == 20 * FULL

    with_channel(scheduler, test)


def test_more_rows_than_slots_take_turns(scheduler: Scheduler) -> None:
    engine = Counting()

    async def test(channel: Callable[[], Channel]) -> None:
        shared = channel()
        scheduler.submit([job(engine, shared, samples=11, prompt=3)])
        pieces = await ended(shared, 11)
        assert {piece.index for piece in pieces} == set(range(11))
        assert max(rows for kind, rows in engine.calls if kind == "draw") == 4
        assert sum(kind == "read" for kind, _ in engine.calls) == 1
        with pytest.raises(ApiError) as caught:
            scheduler.submit([job(engine, shared, samples=13)])
        assert caught.value.status == 400

    with_channel(scheduler, test)


def test_other_work_runs_step_by_step(scheduler: Scheduler) -> None:
    assert scheduler.run(iter(range(3))).result(10) == [0, 1, 2]

    def fails() -> Iterator[int]:
        yield 1
        raise RuntimeError("no")

    with pytest.raises(ApiError):
        scheduler.run(fails()).result(10)


def test_openais_client_understands_pings_and_the_end() -> None:
    chunks = [event({"a": "é\n"}), PING, PING, event({"b": 1}), DONE]
    events = list(SSEDecoder().iter_bytes(iter(chunks)))
    assert [one.data for one in events if one.data] == ['{"a":"é\\n"}', '{"b":1}', "[DONE]"]
    assert all(one.data for one in events)
