"""State tracking: trained on strings of up to 40 tokens, tested on up to 512.

    python benchmarks/state_tracking.py --seeds 0,1,2 --out tracking.json

Three tasks, each with a target at every position:

| task   | tokens | target after each token                                      |
|--------|--------|--------------------------------------------------------------|
| parity | 0, 1   | whether the number of ones so far is odd                     |
| mod5   | 0, 1   | the number of ones so far, modulo 5                          |
| dyck2  | ( [ ) ]| which bracket may close now: none, round or square           |

Dyck-2 strings are prefixes of well-nested strings of depth at most 6. Every model has two layers of `--width` features
and the same training, on strings whose maximum length grows from 3 to 40 tokens. Accuracy is measured over the last
tenth of the positions. Gates that depend on the input alone make the recurrence linear in the state with slopes between
0 and 1, which cannot flip a bit; state-dependent gates can, and the benchmark measures whether training finds it. The
networks of this package use the same block around different layers.

Prints Markdown tables; the last line of stdout is one JSON document. An interrupted sweep resumes with the same --out.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.models import Awd, Gpt2, GruCell, LanguageModel, Liquid, MinGruCell, exchange_cells
from lib.report import Results, integers, log, markdown, print_json, spread
from lib.training import Plan, decay_groups, rate
from ltc_textgen.cli import process_env

TRAINED = 40
LENGTHS = (40, 100, 256, 512)
DEPTH = 6
TOKENS: Mapping[str, int] = {"parity": 2, "mod5": 2, "dyck2": 4}
TARGETS: Mapping[str, int] = {"parity": 2, "mod5": 5, "dyck2": 3}


def sequences(task: str, batch: int, length: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and targets, both (B, T)."""
    if task == "dyck2":
        return brackets(batch, length, draw)
    ones = draw.integers(0, 2, (batch, length))
    modulus = TARGETS[task]
    return torch.from_numpy(ones), torch.from_numpy(np.cumsum(ones, 1) % modulus)


def brackets(batch: int, length: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Dyck-2 strings: tokens 0 and 1 open, 2 and 3 close; targets are 0 (none open), 1 (round) or 2 (square)."""
    tokens, targets = np.zeros((batch, length), np.int64), np.zeros((batch, length), np.int64)
    opens, kinds = draw.random((batch, length)) < 0.5, draw.integers(0, 2, (batch, length))
    for row in range(batch):
        stack: list[int] = []
        for t in range(length):
            if not stack or (opens[row, t] and len(stack) < DEPTH):
                stack.append(int(kinds[row, t]))
                tokens[row, t] = stack[-1]
            else:
                tokens[row, t] = 2 + stack.pop()
            targets[row, t] = stack[-1] + 1 if stack else 0
    return torch.from_numpy(tokens), torch.from_numpy(targets)


def contenders(width: int) -> Mapping[str, Callable[[int, int], LanguageModel]]:
    """The models compared: name -> builder from the numbers of tokens and targets."""

    def liquid(coupling: str = "diagonal", **settings: Any) -> Callable[[int, int], Liquid]:
        base = {"block": "liquid", "hidden_size": width, "num_layers": 2, "steps": 1, "step_size": 1.0}
        return lambda tokens, targets: Liquid.of(tokens, targets, **{**base, "coupling": coupling, **settings})

    def input_only(tokens: int, targets: int) -> Liquid:
        model = liquid()(tokens, targets)
        for layer in model.network.layers:
            layer.cell.self_weight.requires_grad_(False)
        return model

    def drawn_feedback(tokens: int, targets: int) -> Liquid:
        model = liquid()(tokens, targets)
        for layer in model.network.layers:
            nn.init.normal_(layer.cell.self_weight, std=FEEDBACK_STD)
        return model

    return {
        "liquid, diagonal": liquid(),
        "liquid, diagonal, r drawn at the start": drawn_feedback,
        "liquid, diagonal, contractive": liquid(contractive=True),
        "liquid, diagonal, input-only gates (r = 0)": input_only,
        "liquid, full": liquid("full"),
        "minGRU in our block": lambda a, b: exchange_cells(liquid()(a, b), MinGruCell),
        "nn.GRU in our block": lambda a, b: exchange_cells(liquid()(a, b), GruCell),
        "nn.LSTM": lambda a, b: Awd("lstm", a, width, width, 2, tied=False, outputs=b),
        "GPT-2 class": lambda a, b: Gpt2(a, LENGTHS[-1], width, 2, 4, outputs=b),
    }


GROWTH = 0.6
"""Fraction of training over which the maximum length grows to 40; without growth, parity is not learned."""

SLOWER = {"GPT-2 class": 0.2}
"""Learning rates that differ from the recurrent networks', as multiples."""

FEEDBACK_STD = 3.0
"""Standard deviation of the initial r_e and r_i in the row that draws them; the package initialises r at 0."""


def train(model: LanguageModel, task: str, plan: Plan, steps: int, seed: int) -> float:
    """Train on random lengths up to a maximum that grows from 3 to 40; returns the seconds taken."""
    adam = torch.optim.AdamW(decay_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, plan.beta2))
    draw, start = np.random.default_rng(seed), time.perf_counter()
    model.train()
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = plan.learning_rate * rate(step / steps, plan)
        longest = 3 + round((TRAINED - 3) * min(1.0, step / (GROWTH * steps)))
        tokens, targets = sequences(task, plan.batch, int(draw.integers(3, longest + 1)), draw)
        adam.zero_grad(set_to_none=True)
        model.loss(model(tokens)[0], targets).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
        adam.step()
    return time.perf_counter() - start


@torch.inference_mode()
def accuracy(model: LanguageModel, task: str, length: int, batch: int = 128) -> float:
    """Accuracy over the last tenth of the positions of held-out strings."""
    model.eval()
    tokens, targets = sequences(task, batch, length, np.random.default_rng(10_000 + length))
    last = max(1, length // 10)
    guesses = model.logits(model(tokens)[0][:, -last:]).argmax(-1)
    return float((guesses == targets[:, -last:]).double().mean())


def run(name: str, task: str, seed: int, o: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = contenders(o.width)[name](TOKENS[task], TARGETS[task])
    plan = Plan(o.learning_rate * SLOWER.get(name, 1.0), batch=o.batch, weight_decay=0.01)
    seconds = train(model, task, plan, o.steps, seed)
    scores = {str(length): accuracy(model, task, length) for length in LENGTHS}
    return {
        "task": task,
        "name": name,
        "seed": seed,
        "parameters": model.parameter_count(),
        "steps": o.steps,
        "learning_rate": plan.learning_rate,
        "accuracy": scores,
        "seconds": round(seconds, 1),
    }


def tables(rows: list[dict[str, Any]]) -> str:
    """Per task: mean and best of the seeds at each length, at the learning rate that is best at length 40."""
    parts = []
    for task in TOKENS:
        lines = []
        for name in dict.fromkeys(row["name"] for row in rows):
            mine = best_rate([row for row in rows if (row["task"], row["name"]) == (task, name)])
            if mine:
                columns = [[row["accuracy"][str(length)] for row in mine] for length in LENGTHS]
                cells = [f"{spread(column)[0]:.1%} ({max(column):.1%})" for column in columns]
                count = f"{mine[0]['parameters']:,}"
                lines.append([name, count, f"{mine[0]['learning_rate']:g}", *cells, str(len(mine))])
        if lines:
            header = [f"{task}, chance about {CHANCE[task]}", "parameters", "rate", *map(str, LENGTHS), "seeds"]
            parts.append(markdown(header, lines))
    return "\n\n".join(parts)


CHANCE: Mapping[str, str] = {"parity": "50 %", "mod5": "20 %", "dyck2": "46 %"}


def best_rate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_rate: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        by_rate.setdefault(row["learning_rate"], []).append(row)
    mean = {r: spread(row["accuracy"][str(TRAINED)] for row in group)[0] for r, group in by_rate.items()}
    return by_rate[max(mean, key=lambda r: mean[r])] if mean else []


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2])
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TOKENS))
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of results; runs that it contains are not repeated")
    options = parser.parse_args(given)
    if unknown := set(options.tasks) - set(TOKENS):
        parser.error(f"--tasks: unknown {', '.join(sorted(unknown))}; choose from {', '.join(TOKENS)}")
    return options


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    process_env.tune()
    torch.set_num_threads(options.threads)
    results = Results(options.out)
    for seed in options.seeds:
        for task in options.tasks:
            for name in contenders(options.width):
                size = f"{options.steps} {options.width} {options.batch} {options.learning_rate:g}"
                key = f"{size} | {task} | {name} | {seed}"
                if options.only not in name or key in results:
                    continue
                row = run(name, task, seed, options)
                results.add(key, row)
                shown = " ".join(f"{length}: {value:.3f}" for length, value in row["accuracy"].items())
                log(f"{key}: {shown} in {row['seconds']} s")
    rows = list(results.rows.values())
    print(tables(rows))
    print_json({"command": " ".join(sys.argv[1:]), "results": rows})


if __name__ == "__main__":
    main()
