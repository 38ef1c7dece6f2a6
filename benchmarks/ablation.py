"""Ablation: one part of a small character model changed at a time, at an equal number of steps.

    python benchmarks/ablation.py --corpus tinyshakespeare.txt --seeds 0,1,2 --out ablation.json

Corpus, seeds, batches, optimizer and steps are equal. Steps rather than time, so that the result depends neither on
kernels nor on the load of the machine; `language.py` compares at equal time. Prints a Markdown table; the last line of
stdout is one JSON document. An interrupted sweep resumes with the same --out.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.models import GruCell, Liquid, MinGruCell, WithMlp, exchange_cells
from lib.report import Results, integers, log, markdown, plus_minus, print_json, spread, strict
from lib.training import Budget, Plan, fit, score
from ltc_textgen.cli import process_env
from ltc_textgen.config import DataConfig
from ltc_textgen.data.token_cache import prepare

BASE: dict[str, Any] = {"block": "liquid", "coupling": "diagonal", "num_layers": 2, "steps": 1, "step_size": 1.0}
PLAIN: dict[str, Any] = {"block": "plain", "coupling": "diagonal", "num_layers": 2, "steps": 1, "step_size": 1.0}
DROPPED = 0.3
"""Fraction of the characters removed in the rows on elapsed time."""


@dataclass(frozen=True)
class Variant:
    """One row: a change to the base.

    Args:
        group: Rows compared with each other; the first of a group is its reference.
        name: Name of the row.
        settings: Settings of the network.
        change: Applied to the network after it is built.
        text: "all", or with characters removed: "timed" (elapsed times given) or "untimed".
        rate: Peak learning rate, as a multiple of the common one.
    """

    group: str
    name: str
    settings: dict[str, Any]
    change: Callable[[Liquid], Any] | None = None
    text: str = "all"
    rate: float = 1.0


def freeze(*names: str) -> Callable[[Liquid], Any]:
    """Freeze the parameters with these names at their initial values."""

    def change(model: Liquid) -> None:
        frozen = [p for name, p in model.named_parameters() if name.split(".")[-1] in names]
        assert frozen, f"no parameter is named {names}"
        for parameter in frozen:
            parameter.requires_grad_(False)

    return change


def draw_feedback(deviation: float) -> Callable[[Liquid], Any]:
    """Draw the initial feedback r_e and r_i; the package initialises them at 0."""

    def change(model: Liquid) -> None:
        for layer in model.network.layers:
            torch.nn.init.normal_(layer.cell.self_weight, std=deviation)

    return change


def unit_leak(model: Liquid) -> None:
    """Initialise g_leak at 1: with a frozen time constant, states may grow to 1 / g_leak, by default up to 1000."""
    for layer in model.network.layers:
        torch.nn.init.zeros_(layer.cell.log_leak)


def add_mlp(model: Liquid) -> None:
    network = model.network
    for i, layer in enumerate(network.layers):
        network.layers[i] = WithMlp(layer, network.settings.hidden_size)


def solver_rows() -> list[Variant]:
    rows = []
    for solver in ("exponential", "explicit", "runge_kutta"):
        rows.append(Variant("block", f"{solver}, 1 sub-step", {**BASE, "solver": solver}))
    for steps in (2, 6):
        rows.append(
            Variant("block", f"semi-implicit, {steps} sub-steps", {**BASE, "steps": steps, "step_size": 1 / steps})
        )
    return rows


VARIANTS = [
    Variant("block", "base: liquid, semi-implicit, 1 sub-step", BASE),
    Variant("block", "fixed time constants (adaptive = false)", {**BASE, "adaptive": False}),
    Variant("block", "fixed time constants, g_leak = 1 at the start", {**BASE, "adaptive": False}, unit_leak),
    Variant("block", "input-only gates (r frozen at 0)", BASE, freeze("self_weight")),
    Variant("block", "r drawn at the start, deviation 1", BASE, draw_feedback(1.0)),
    Variant("block", "r drawn at the start, deviation 3", BASE, draw_feedback(3.0)),
    Variant("block", "C frozen", BASE, freeze("log_capacitance")),
    Variant("block", "g_leak frozen", BASE, freeze("log_leak")),
    Variant("block", "C, g_leak and E frozen", BASE, freeze("log_capacitance", "log_leak", "reversal")),
    Variant("block", "contractive", {**BASE, "contractive": True}),
    *solver_rows(),
    Variant("block", "no convolution", {**BASE, "conv_width": 1}),
    Variant("block", "an MLP after each mixer", BASE, add_mlp),
    Variant("block", "minGRU in place of the liquid cell", BASE, lambda model: exchange_cells(model, MinGruCell)),
    Variant("block", "nn.GRU in place of the liquid cell", BASE, lambda model: exchange_cells(model, GruCell)),
    Variant("no convolution", "liquid", {**BASE, "conv_width": 1}),
    Variant("no convolution", "fixed time constants", {**BASE, "conv_width": 1, "adaptive": False}),
    Variant("no convolution", "input-only gates (r frozen at 0)", {**BASE, "conv_width": 1}, freeze("self_weight")),
    Variant("no convolution", "minGRU", {**BASE, "conv_width": 1}, lambda model: exchange_cells(model, MinGruCell)),
    Variant("plain layers", "diagonal, 1 sub-step", PLAIN),
    Variant("plain layers", "diagonal, r frozen at 0", PLAIN, freeze("self_weight")),
    Variant("plain layers", "diagonal, fixed time constants", {**PLAIN, "adaptive": False}),
    Variant("plain layers", "diagonal, fixed, g_leak = 1 at the start", {**PLAIN, "adaptive": False}, unit_leak),
    Variant("plain layers", "full, 1 sub-step", {**PLAIN, "coupling": "full"}, rate=0.5),
    Variant(
        "plain layers", "full, 6 sub-steps", {**PLAIN, "coupling": "full", "steps": 6, "step_size": 1 / 6}, rate=0.5
    ),
    Variant("plain layers", "full, fixed time constants", {**PLAIN, "coupling": "full", "adaptive": False}, rate=0.5),
    Variant("plain layers", "cfc", {**PLAIN, "coupling": "cfc"}, rate=0.5),
    Variant("3 of 10 characters missing", "elapsed time given", BASE, text="timed"),
    Variant("3 of 10 characters missing", "elapsed time not given", BASE, text="untimed"),
    Variant(
        "3 of 10 characters missing",
        "elapsed time given, fixed time constants",
        {**BASE, "adaptive": False},
        text="timed",
    ),
    Variant(
        "3 of 10 characters missing", "elapsed time given, no convolution", {**BASE, "conv_width": 1}, text="timed"
    ),
    Variant(
        "3 of 10 characters missing",
        "elapsed time not given, no convolution",
        {**BASE, "conv_width": 1},
        text="untimed",
    ),
]


def thinned(tokens: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Remove a fraction `DROPPED` of the tokens; also returns the elapsed time from each token to the next."""
    kept = np.flatnonzero(np.random.default_rng(seed).random(len(tokens)) >= DROPPED)
    gaps = np.append(np.diff(kept), 1)
    return np.asarray(tokens)[kept], gaps


def run(
    variant: Variant, seed: int, tokens: tuple[np.ndarray, np.ndarray], vocabulary: int, o: argparse.Namespace
) -> dict[str, Any]:
    """Train one variant and score it on all validation tokens."""
    torch.manual_seed(seed)
    model = Liquid.of(vocabulary, hidden_size=o.width, **variant.settings)
    if variant.change:
        variant.change(model)
    train, valid = tokens
    times = None
    if variant.text != "all":
        (train, train_gaps), (valid, valid_gaps) = thinned(train, 1), thinned(valid, 2)
        times = (train_gaps, valid_gaps) if variant.text == "timed" else None
    plan = Plan(o.learning_rate * variant.rate, batch=o.batch, length=o.length, validations=1)
    fitted = fit(model, train, valid, plan, Budget(steps=o.steps), seed, times)
    elapsed = None if times is None else times[1]
    return {
        "group": variant.group,
        "name": variant.name,
        "seed": seed,
        "parameters": model.parameter_count(),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "learning_rate": plan.learning_rate,
        "carried": score(model, valid, streams=16, elapsed=elapsed),
        "windows_64": score(model, valid, window=64, elapsed=elapsed),
        "train_loss": fitted.train_loss,
        "seconds": round(fitted.seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation of every variant and its paired difference from the first of its group."""
    lines, first = [], {}
    for variant in VARIANTS:
        mine = {row["seed"]: row for row in rows if (row["group"], row["name"]) == (variant.group, variant.name)}
        if not mine:
            continue
        base = first.setdefault(variant.group, mine)
        pairs = [(mine[seed]["carried"], base[seed]["carried"]) for seed in mine if seed in base]
        paired = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
        mean, deviation = spread(paired) if paired else (float("nan"), 0.0)
        against = "" if mine is base or not paired else f"{mean:+.3f} ± {deviation:.3f}"
        carried, windows = ([row[key] for row in mine.values()] for key in ("carried", "windows_64"))
        parameters = f"{next(iter(mine.values()))['trainable']:,}"
        lines.append(
            [variant.group, variant.name, parameters, plus_minus(carried), plus_minus(windows), against, str(len(mine))]
        )
    header = [
        "group",
        "variant",
        "trained parameters",
        "carried, nats/char",
        "windows of 64",
        "against the first of the group",
        "seeds",
    ]
    return markdown(header, lines)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="text file; its last tenth is held out")
    parser.add_argument("--tokenizer", default="char", help="as for ltc train")
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    parser.add_argument("--only", default="", help="only variants whose group or name contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of results; runs that it contains are not repeated")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    process_env.tune()
    torch.set_num_threads(options.threads)
    data = prepare(DataConfig(data=options.corpus, tokenizer=options.tokenizer))
    results = Results(options.out)
    for seed in options.seeds:
        for variant in VARIANTS:
            size = f"{options.steps} {options.width} {options.batch} {options.length} {options.learning_rate}"
            key = f"{data.fingerprint[:12]} {size} | {variant.group} | {variant.name} | {seed}"
            if options.only not in f"{variant.group} {variant.name}" or key in results:
                continue
            row = run(variant, seed, (data.train, data.valid), data.tokenizer.vocab_size, options)
            results.add(key, row)
            log(f"{key}: {row['carried']:.4f} in {row['seconds']} s")
    rows = strict(list(results.rows.values()))
    print(table(rows))
    print_json({"command": " ".join(sys.argv[1:]), "valid_tokens": len(data.valid) - 1, "results": rows})


if __name__ == "__main__":
    main()
