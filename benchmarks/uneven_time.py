"""Uneven time: tokens carry the time until the next, and the answer depends on it.

    python benchmarks/uneven_time.py --seeds 0,1,2 --out uneven.json

The tokens are 0 and 1. A trace rises by one at each 1 and decays with a time constant of 10; the target is whether the
trace is above 0.5 at the end of the pause after the token. Pauses are log-normal with a median of 4. Models are tested
on pauses of the trained distribution, and on pauses twice and half as long, which they have not seen.

| model              | how it learns of a pause                                          |
|--------------------|-------------------------------------------------------------------|
| liquid, elapsed    | `elapsed`: the membrane equation is integrated over the pause     |
| liquid, no time    | not at all: the control                                           |
| liquid, as tokens  | each token says its pause in one of 8 logarithmic bins            |
| nn.GRU, as tokens  | the same, in the block of this package                            |
| minGRU, as tokens  | the same                                                          |

Prints a Markdown table; the last line of stdout is one JSON document. An interrupted sweep resumes with the same --out.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.models import GruCell, LanguageModel, Liquid, MinGruCell, exchange_cells
from lib.report import Results, integers, log, markdown, plus_minus, print_json
from lib.training import Plan, decay_groups, rate
from ltc_textgen.cli import process_env

TAU, LEVEL, MEDIAN, SPREAD = 10.0, 0.5, 4.0, 1.0
BINS, LENGTH = 8, 64
SCALES = (1.0, 2.0, 0.5)
MODELS = ("liquid, elapsed", "liquid, no time", "liquid, as tokens", "nn.GRU, as tokens", "minGRU, as tokens")


def sequences(batch: int, scale: float, draw: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, T), pauses after each (B, T), and targets (B, T)."""
    tokens = (draw.random((batch, LENGTH)) < 0.3).astype(np.int64)
    pauses = scale * MEDIAN * np.exp(SPREAD * draw.standard_normal((batch, LENGTH)))
    trace, targets = np.zeros(batch), np.zeros((batch, LENGTH), np.int64)
    for t in range(LENGTH):
        trace = (trace + tokens[:, t]) * np.exp(-pauses[:, t] / TAU)
        targets[:, t] = trace > LEVEL
    return torch.from_numpy(tokens), torch.from_numpy(pauses).float(), torch.from_numpy(targets)


def build(name: str, width: int) -> LanguageModel:
    """A model by its name, freshly initialised."""
    vocabulary = 2 * BINS if name.endswith("as tokens") else 2
    base = {"coupling": "diagonal", "block": "liquid", "hidden_size": width, "num_layers": 2, "steps": 1}
    model = Liquid.of(vocabulary, 2, **base, step_size=1.0)
    cells = {"nn.GRU, as tokens": GruCell, "minGRU, as tokens": MinGruCell}
    return exchange_cells(model, cells[name]) if name in cells else model


def read(model: LanguageModel, name: str, tokens: Tensor, pauses: Tensor) -> Tensor:
    """Hidden vectors of a batch, with its pauses in the form that the model takes."""
    if name == "liquid, elapsed":
        return model(tokens, None, pauses)[0]
    if name.endswith("as tokens"):
        places = (BINS / 2 + torch.log2(pauses / MEDIAN) * BINS / 8).floor().clamp(0, BINS - 1).long()
        tokens = tokens + 2 * places
    return model(tokens)[0]


def run(name: str, seed: int, o: argparse.Namespace) -> dict[str, Any]:
    """Train and test one model."""
    torch.manual_seed(seed)
    model, start = build(name, o.width), time.perf_counter()
    plan = Plan(o.learning_rate, batch=o.batch, weight_decay=0.01)
    adam = torch.optim.AdamW(decay_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, plan.beta2))
    draw = np.random.default_rng(seed)
    for step in range(o.steps):
        for group in adam.param_groups:
            group["lr"] = plan.learning_rate * rate(step / o.steps, plan)
        tokens, pauses, targets = sequences(plan.batch, 1.0, draw)
        adam.zero_grad(set_to_none=True)
        model.loss(read(model.train(), name, tokens, pauses), targets).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
        adam.step()
    scores, chance = {}, {}
    model.eval()
    for scale in SCALES:
        tokens, pauses, targets = sequences(512, scale, np.random.default_rng(10_000))
        with torch.inference_mode():
            guesses = model.logits(read(model, name, tokens, pauses)).argmax(-1)
        scores[str(scale)] = float((guesses == targets).double().mean())
        positive = float(targets.double().mean())
        chance[str(scale)] = max(positive, 1 - positive)
    numbers = {"parameters": model.parameter_count(), "seconds": round(time.perf_counter() - start, 1)}
    return {"name": name, "seed": seed, "steps": o.steps, "accuracy": scores, "chance": chance, **numbers}


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy by model and length of the pauses."""
    lines = []
    for name in MODELS:
        mine = [row for row in rows if row["name"] == name]
        if mine:
            cells = [plus_minus(row["accuracy"][str(scale)] for row in mine) for scale in SCALES]
            lines.append([name, f"{mine[0]['parameters']:,}", *cells, str(len(mine))])
    if rows:
        lines.append(["always the same answer", "", *(f"{rows[0]['chance'][str(scale)]:.3f}" for scale in SCALES), ""])
    return markdown(["model", "parameters", "pauses as trained", "twice as long", "half as long", "seeds"], lines)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2])
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of results; runs that it contains are not repeated")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    process_env.tune()
    torch.set_num_threads(options.threads)
    results = Results(options.out)
    for seed in options.seeds:
        for name in MODELS:
            key = f"{options.steps} {options.width} {options.batch} {options.learning_rate:g} | {name} | {seed}"
            if options.only in name and key not in results:
                results.add(key, run(name, seed, options))
                row = results.rows[key]
                log(f"{key}: {row['accuracy']} in {row['seconds']} s")
    rows = list(results.rows.values())
    print(table(rows))
    print_json({"command": " ".join(sys.argv[1:]), "results": rows})


if __name__ == "__main__":
    main()
