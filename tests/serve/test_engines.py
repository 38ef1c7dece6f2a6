"""Both engines draw the same tokens with every option, and a row does not depend on the other rows."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltc_textgen.config import SamplingConfig
from ltc_textgen.generation.sample_text import SampleText
from ltc_textgen.kernels.library import LIBRARY
from ltc_textgen.runs import Run, load_run, memory_of
from ltc_textgen.serve.engine import Clamp, Context, Drawn, Engine, Neuron, Options
from ltc_textgen.serve.engines import engines_for
from ltc_textgen.serve.jobs import Channel, Job

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no library")

HELD = (Clamp(Neuron(0, 3), value=0.4, start=3), Clamp(Neuron(1, 2), tau_factor=9.0, start=10))
PENALTIES: dict[str, Any] = {"presence_penalty": 0.7, "frequency_penalty": 0.3}
CASES = [
    Options(SamplingConfig(temperature=0.8), logprobs=3, observe=True),
    Options(SamplingConfig(temperature=0), logprobs=0),
    Options(SamplingConfig(temperature=1.2, top_k=9, top_p=0.9, min_p=0.02, repetition_penalty=1.3)),
    Options(SamplingConfig(ignore_eos=True), **PENALTIES, logit_bias=((3, 2.0), (5, -100.0))),
    Options(SamplingConfig(), logprobs=2, clamps=HELD),
    Options(SamplingConfig(), elapsed=0.5, logprobs=1),
]
TOKENS = 40
LOOP = asyncio.new_event_loop()  # pieces go nowhere here


def job(run: Run, engine: Engine, options: Options, prompt: str, seed: int) -> Job:
    sampling = options.sampling.model_copy(update={"max_tokens": TOKENS})
    ids = run.tokenizer.encode(prompt)
    return Job(
        model="chars",
        engine=engine,
        context=Context(run.network.initial_state(1).detach(), np.array(ids, np.int64)),
        options=Options(**{**vars(options), "sampling": sampling}),
        seed=seed,
        text=SampleText(run.tokenizer, ids, sampling),
        eos_token_id=run.tokenizer.eos_token_id,
        vocabulary=run.tokenizer.vocab_size,
        channel=Channel(LOOP, lambda: None),
        seen=ids,
        keep_state=True,
    )


def drawn(jobs: list[Job], count: int) -> list[tuple[list[int], list[float], torch.Tensor, torch.Tensor]]:
    """Tokens, log-probabilities, time constants and last state of the first sample of each job, in common calls."""
    rows = []
    for one in jobs:
        while not one.context.ready:
            one.engine.read(one.context, one.options.elapsed)
        rows.append(one.row(0))
    blocks: list[list[Drawn]] = [[] for _ in rows]
    while left := [number for number, row in enumerate(rows) if row.state.drawn < TOKENS]:
        for number, block in zip(left, jobs[0].engine.draw([rows[n].state for n in left], count), strict=True):
            assert isinstance(block, Drawn)
            blocks[number].append(block)
            if rows[number].state.eos_token_id in block.tokens:
                rows[number].state.drawn = TOKENS
    for row in rows:
        row.job.engine.release(row.state)
    result = []
    for row, parts in zip(rows, blocks, strict=True):
        logprobs = [score.logprob for part in parts for score in part.scored or []]
        taus = [part.tau for part in parts if part.tau is not None]
        tau = torch.cat(taus) if taus else torch.empty(0)
        state = torch.cat(row.state.context.state.neurons)
        result.append(([token for part in parts for token in part.tokens], logprobs, tau, state))
    return result


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES, ids=lambda options: str(options.sampling.temperature))
def test_engines_agree_and_rows_are_independent(loaded: dict[str, Run], options: Options) -> None:
    run = loaded["chars"]
    native, reference = engines_for(run.network, "native", 4)
    assert native.supports(options)
    alone = drawn([job(run, native, options, "it was a day", 5)], 7)[0]
    expected = drawn([job(run, reference, options, "it was a day", 5)], 1)[0]
    assert alone[0] == expected[0]
    assert alone[1] == pytest.approx(expected[1], abs=1e-4)
    torch.testing.assert_close(alone[2], expected[2], rtol=1e-4, atol=0)
    torch.testing.assert_close(alone[3], expected[3], rtol=0, atol=1e-5)
    others = [job(run, native, case, "the sea was calm", n) for n, case in enumerate(CASES[:3])]
    crowd = drawn([*others, job(run, native, options, "it was a day", 5)], 3)[-1]
    assert crowd[:2] == alone[:2]
    assert crowd[2].equal(alone[2])
    assert crowd[3].equal(alone[3])


def test_a_prompt_is_scored_alike(loaded: dict[str, Run]) -> None:
    run = loaded["chars"]
    scored = []
    for engine in engines_for(run.network, "native", 1):
        one = job(run, engine, Options(), "it was a day at sea. " * 40, 0)
        while not one.context.ready:
            engine.read(one.context, 1.0, 2)
        scored.append(one.context.scored)
    assert len(scored[0]) == len(scored[1]) == 839
    for ours, theirs in zip(*scored, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-4)


@pytest.mark.parametrize("score", [None, 2])
def test_the_memory_is_the_same_in_both_engines(trained_story: Path, score: int | None) -> None:
    run = load_run(trained_story)
    options = Options(SamplingConfig(max_tokens=TOKENS), logprobs=1, memory=memory_of(run).with_share(0.8))
    found = []
    for engine in engines_for(run.network, "native", 2):
        one = job(run, engine, options, "On day 3 the sea was calm. " * 30, 4)
        one.context.memory = options.memory
        while not one.context.ready:
            engine.read(one.context, 1.0, score)
        found.append((one.context.scored, drawn([one], 5)[0]))
    (ours, mine), (theirs, other) = found
    assert mine[0] == other[0]
    assert mine[1] == pytest.approx(other[1], abs=1e-4)
    assert [s.logprob for s in ours] == pytest.approx([s.logprob for s in theirs], abs=1e-4)
