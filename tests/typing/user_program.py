"""A program of a user: every public name has a type that a checker knows. Checked by mypy --strict, never run."""

from pathlib import Path
from typing import assert_type

import torch

from ltc_textgen import (
    Coupling,
    DataConfig,
    LiquidState,
    LiquidTimeConstantNetwork,
    LTCConfig,
    LTCError,
    MemoryLogitsProcessor,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    Solver,
    TextState,
    TrainConfig,
    analysis,
    evaluate,
    generate,
    generate_stream,
    layers,
    load_run,
    memory_of,
    mix,
    train,
)
from ltc_textgen.evaluation import Scores
from ltc_textgen.generation import Completion
from ltc_textgen.memory import Mixture
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.runs import Run
from ltc_textgen.training import TrainResult

settings = ModelConfig(input_size=10, coupling=Coupling.diagonal, solver=Solver.exponential)
assert_type(settings.hidden_size, int)
run = load_run("runs/book")
assert_type(run, Run)
assert_type(run.model, LiquidTimeConstantNetwork)
assert_type(run.network, LiquidNetwork)
assert_type(run.model.settings, ModelConfig)
state = run.model.read("On day")
assert_type(state, TextState)
assert_type(mix(state, state, 0.3), TextState)
hidden, after = run.model.advance(torch.zeros(1, 3, dtype=torch.int64))
assert_type(after, LiquidState)
memory = memory_of(run)
assert_type(memory, Mixture | None)
if memory is not None:
    run.model.generate(logits_processor=[MemoryLogitsProcessor(memory.with_share(0.5))])
texts = generate(run.model, run.tokenizer, "On day", SamplingConfig(max_tokens=5))
assert_type(texts, list[Completion])
for chunk in generate_stream(run.model, run.tokenizer, "On day", SamplingConfig(max_tokens=5)):
    assert_type(chunk.text, str)
assert_type(evaluate(run.model, run.tokenizer, ["a text"]), Scores)
config = RunConfig(data=DataConfig(data="embedded"), train=TrainConfig(max_steps=1))
assert_type(LTCConfig.from_settings(settings).settings, ModelConfig)
layer = layers.DiagonalLTC(4, 8)
outputs, last = layer(torch.zeros(1, 3, 4))
assert_type(analysis.trace(run.model, "On day"), analysis.Trace)
errors: type[Exception] = LTCError
result: TrainResult = train(config, Path("runs/book"))
