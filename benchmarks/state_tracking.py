"""Can a recurrence keep a state exactly? Trained on sequences of up to 40 tokens, tested on up to 512.

    python benchmarks/state_tracking.py --seeds 0,1,2 --out tracking.json

Three tasks, each with an answer at every position:

| task   | tokens | answer after each token                                      |
|--------|--------|--------------------------------------------------------------|
| parity | 0, 1   | whether the ones so far are odd                              |
| mod5   | 0, 1   | how many ones so far, modulo 5                               |
| dyck2  | ( [ ) ]| which bracket may close now: none, round or square           |

Dyck-2 strings are prefixes of well-nested ones, of depth at most 6. Every model has two layers of `--width` features
and the same training, on strings that grow from 3 to 40 tokens. Accuracy is that over the last tenth of the positions,
where a state that fades or drifts shows. A gate that sees the input alone makes the recurrence linear in the state,
with slopes between 0 and 1: it cannot flip a bit. One that sees the state can; whether training finds it is what is
measured. The networks of this package are given the same block around different cells, so the cell is all that differs.

Prints Markdown tables; the last line of stdout is one JSON document. An interrupted run goes on with the same --out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rivals import Awd, Gpt2, GruCell, Liquid, MinGruCell, Rival, exchange_cells
from torch import Tensor, nn
from trial import Plan, Results, decay_groups, markdown, rate, spread

from ltc_textgen.cli import process_env

TRAINED = 40
LENGTHS = (40, 100, 256, 512)
DEPTH = 6
TOKENS: Mapping[str, int] = {"parity": 2, "mod5": 2, "dyck2": 4}
ANSWERS: Mapping[str, int] = {"parity": 2, "mod5": 5, "dyck2": 3}


def sequences(task: str, batch: int, length: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and answers, both (B, T)."""
    if task == "dyck2":
        return brackets(batch, length, draw)
    ones = draw.integers(0, 2, (batch, length))
    modulus = ANSWERS[task]
    return torch.from_numpy(ones), torch.from_numpy(np.cumsum(ones, 1) % modulus)


def brackets(batch: int, length: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Opening ones are 0 and 1, closing ones 2 and 3; answers are 0 (none is open), 1 (round) or 2 (square)."""
    tokens, answers = np.zeros((batch, length), np.int64), np.zeros((batch, length), np.int64)
    opens, kinds = draw.random((batch, length)) < 0.5, draw.integers(0, 2, (batch, length))
    for row in range(batch):
        stack: list[int] = []
        for t in range(length):
            if not stack or (opens[row, t] and len(stack) < DEPTH):
                stack.append(int(kinds[row, t]))
                tokens[row, t] = stack[-1]
            else:
                tokens[row, t] = 2 + stack.pop()
            answers[row, t] = stack[-1] + 1 if stack else 0
    return torch.from_numpy(tokens), torch.from_numpy(answers)


def contenders(width: int) -> Mapping[str, Callable[[int, int], Rival]]:
    """What is compared: from the sizes of the vocabularies to a model."""

    def liquid(coupling: str = "diagonal", **settings: Any) -> Callable[[int, int], Liquid]:
        base = {"block": "liquid", "hidden_size": width, "num_layers": 2, "steps": 1, "step_size": 1.0}
        return lambda tokens, answers: Liquid.of(tokens, answers, **{**base, "coupling": coupling, **settings})

    def input_only(tokens: int, answers: int) -> Liquid:
        model = liquid()(tokens, answers)
        for layer in model.network.layers:
            layer.cell.self_weight.requires_grad_(False)
        return model

    def drawn_feedback(tokens: int, answers: int) -> Liquid:
        model = liquid()(tokens, answers)
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
"""Share of the training in which the longest strings grow to their full length; without, parity is not learned."""

SLOWER = {"GPT-2 class": 0.2}
"""Learning rates of models that need another one than the recurrent networks, as multiples."""

FEEDBACK_STD = 3.0
"""Spread of r_e and r_i at the start of the row that draws them; the package's own start is r = 0."""


def train(model: Rival, task: str, plan: Plan, steps: int, seed: int) -> float:
    """Train on random lengths, the longest of which grows from 3 to 40; returns the seconds it took."""
    adam = torch.optim.AdamW(decay_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, plan.beta2))
    draw, start = np.random.default_rng(seed), time.perf_counter()
    model.train()
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = plan.learning_rate * rate(step / steps, plan)
        longest = 3 + round((TRAINED - 3) * min(1.0, step / (GROWTH * steps)))
        tokens, answers = sequences(task, plan.batch, int(draw.integers(3, longest + 1)), draw)
        adam.zero_grad(set_to_none=True)
        model.loss(model(tokens)[0], answers).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        adam.step()
    return time.perf_counter() - start


@torch.inference_mode()
def accuracy(model: Rival, task: str, length: int, batch: int = 128) -> float:
    """Share of right answers over the last tenth of the positions of strings never trained on."""
    model.eval()
    tokens, answers = sequences(task, batch, length, np.random.default_rng(10_000 + length))
    last = max(1, length // 10)
    guesses = model.logits(model(tokens)[0][:, -last:]).argmax(-1)
    return float((guesses == answers[:, -last:]).double().mean())


def run(name: str, task: str, seed: int, o: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = contenders(o.width)[name](TOKENS[task], ANSWERS[task])
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
    """For each task, mean and best of the seeds at each length; of several learning rates the one best at length 40."""
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
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TOKENS))
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of the results; what it holds already is not run again")
    options = parser.parse_args(given)
    if unknown := set(options.tasks) - set(TOKENS):
        parser.error(f"--tasks: {', '.join(sorted(unknown))} is none of {', '.join(TOKENS)}")
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
                shown = " ".join(f"{length}: {share:.3f}" for length, share in row["accuracy"].items())
                print(f"{key}: {shown} in {row['seconds']} s", file=sys.stderr, flush=True)
    rows = list(results.rows.values())
    print(tables(rows))
    print(f"\n{json.dumps({'command': ' '.join(sys.argv[1:]), 'results': rows})}")


if __name__ == "__main__":
    main()
