"""Language models side by side: the same text, tokens, seeds and budget for this package and for its peers.

    python benchmarks/language.py --corpus tinyshakespeare.txt --tokenizer char --budget 80s --plot curves.svg
    python benchmarks/language.py --corpus wikitext2.valid.txt --tokenizer word --budget 80s --parameters 2500000 \\
        --models liquid,lstm,gpt2 --out words.json
    python benchmarks/language.py --corpus book.txt --tokenizer char --preset auto --budget 3m --models liquid,lstm

| model    | what it is                                                                              |
|----------|-----------------------------------------------------------------------------------------|
| liquid   | this package's recipe (or --preset, --set), trained by its own `ltc train`              |
| diagonal, full, synaptic, cfc | the couplings of this package as plain layers, trained by `ltc train` too  |
| lstm, gru| nn.LSTM, nn.GRU with AWD-LSTM's dropouts and, for words, tied matrices                  |
| mingru   | minGRU cells in the liquid block                                                        |
| gpt2     | the GPT-2 class of transformers; for characters nanoGPT's CPU configuration             |

Peers are trained by one plain loop (`trial.fit`), recurrent ones with carried state; the settings of all are in
`contest.py`. `--tune` first tries three learning rates for each peer at an eighth of the budget and takes the best.
Time counts from the first step on, validation included; the weights of the best validation are scored:

* `carried`: nats per token over all validation tokens but the first, state carried; a GPT-2 sees windows of its
  context that overlap by three quarters.
* `windows_64`, `windows_256`: the same, everything before forgotten every so many tokens.
* `crops_64`: nanoGPT's estimate, 20 rounds of 12 random crops of 64, as in its CPU configuration.

Seeds are the outer loop, so that all models meet the same drift of the machine. Prints a Markdown table; the last line
of stdout is one JSON document. With --out an interrupted sweep goes on, and runs that are done are not repeated.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from contest import Ours, Peer, liquid_width, ours, peer_width, peers
from rivals import Liquid, Rival
from trial import Budget, Fit, Results, fit, markdown, plus_minus, random_crops, score
from words import word_tokenizer

from ltc_textgen.cli import main as cli
from ltc_textgen.cli import process_env
from ltc_textgen.cli.common import seconds
from ltc_textgen.config import DataConfig, TrainConfig
from ltc_textgen.data.token_cache import TokenData, prepare
from ltc_textgen.errors import LTCError
from ltc_textgen.presets.recipes import Recipe, assignments, load_preset, merge, preset_text
from ltc_textgen.runs import load_run
from ltc_textgen.training.budget import LENGTHS

SCORES = ("carried", "windows_64", "windows_256", "crops_64")
SHORT = 1 / 8
"""Share of the budget of each of `--tune`'s runs."""

TRIED = (0.5, 1.0, 2.0)
"""Multiples of a peer's learning rate that `--tune` tries."""


def train_ours(entry: Ours, name: str, data: TokenData, seed: int, o: argparse.Namespace) -> tuple[Rival, Fit, dict]:
    """Train through `ltc train`, and load what it left behind."""
    preset = o.preset if name == "liquid" and o.preset else entry.preset
    recipe = merge(load_preset(preset) if preset not in (None, "auto") else {}, {} if preset else entry.recipe())
    settings = list(o.set) if name == "liquid" else []
    recipe = merge(recipe, assignments(settings))
    if o.parameters and preset != "auto":
        width = liquid_width(recipe["model"], data.tokenizer.vocab_size, o.parameters)
        recipe = merge(recipe, {"model": {"hidden_size": width}})
    with tempfile.TemporaryDirectory(prefix="ltc-language-") as folder:
        out, config = Path(folder) / "run", Path(folder) / "recipe.json"
        config.write_text(json.dumps(recipe))
        command = ["train", "--data", o.corpus, "--tokenizer", o.tokenizer, "--seed", str(seed), "--out", str(out)]
        command += ["--threads", str(torch.get_num_threads()), "--set", "sample_tokens=0", "--json", *length(o, recipe)]
        command += ["--preset", "auto"] if preset == "auto" else ["--config", str(config)]
        command += [part for one in settings for part in ("--set", one)]
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(io.StringIO()) as log:
            code = cli.run(command)
        if code:
            raise LTCError(f"ltc {' '.join(command)}: exit code {code}\n{log.getvalue()[-2000:]}")
        result = json.loads(told.getvalue().splitlines()[-1])
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        run = load_run(out)
        train = json.loads((out / "training.json").read_text())["run"]["train"]
    per_step = train["batch_size"] * train["sequence_length"]
    curve = [(row["seconds"], row["step"] * per_step, row["val_loss"]) for row in lines if row.get("val_loss")]
    done = Fit(
        result["step"], result["tokens"], result["seconds"], result["best_val_loss"], result["train_loss"], curve
    )
    return (
        Liquid(run.model),
        done,
        {"preset": preset, "model": run.model.settings.model_dump(mode="json"), "train": train},
    )


def length(o: argparse.Namespace, recipe: Recipe) -> list[str]:
    """How long `ltc train` trains, as its options say it."""
    if o.seconds:
        return ["--time-budget", f"{o.seconds}s"]
    if o.steps:
        return ["--max-steps", str(o.steps)]
    train = TrainConfig.parse({k: v for k, v in recipe.get("train", {}).items() if k not in LENGTHS})
    return ["--max-steps", str(math.ceil(o.tokens / (train.batch_size * train.sequence_length)))]


def train_peer(entry: Peer, name: str, data: TokenData, seed: int, o: argparse.Namespace, results: Results) -> Any:
    vocabulary = data.tokenizer.vocab_size
    width = peer_width(entry, vocabulary, o.parameters) if o.parameters else entry.width
    plan, tried = entry.plan, None
    if o.tune:
        tried = tuned(entry, name, width, data, o, results)
        plan = replace(plan, learning_rate=float(min(tried, key=lambda rate: tried[rate])))
    torch.manual_seed(seed)
    model = entry.make(vocabulary, width)
    done = fit(model, data.train, data.valid, plan, budget(o), seed)
    return model, done, {"width": width, "plan": asdict(plan), "tried_learning_rates": tried}


def tuned(
    entry: Peer, name: str, width: int, data: TokenData, o: argparse.Namespace, results: Results
) -> dict[str, float]:
    """Validation loss by learning rate, from short runs with a seed of their own."""
    losses = {}
    for factor in TRIED:
        rate = entry.plan.learning_rate * factor
        key = f"tune {name} {width} {rate:g} {o.length_key} {data.fingerprint[:12]}"
        if key not in results:
            torch.manual_seed(100)
            plan = replace(entry.plan, learning_rate=rate)
            done = fit(
                entry.make(data.tokenizer.vocab_size, width), data.train, data.valid, plan, budget(o, SHORT), 100
            )
            results.add(key, {"tuning": name, "learning_rate": rate, "loss": done.best_loss, "steps": done.steps})
            say(f"{key}: {done.best_loss:.4f}")
        losses[f"{rate:g}"] = results.rows[key]["loss"]
    return losses


def budget(o: argparse.Namespace, share: float = 1.0) -> Budget:
    whole = {"seconds": o.seconds, "steps": o.steps, "tokens": o.tokens}
    scaled = {name: value * share for name, value in whole.items() if value}
    return Budget(**{name: value if name == "seconds" else max(1, round(value)) for name, value in scaled.items()})


def scores(model: Rival, data: TokenData) -> dict[str, float | None]:
    """What the head of this module lists; None where a transformer's context is too short."""
    fits = {size: model.context is None or model.context >= size for size in (64, 256)}
    windows = {f"windows_{n}": score(model, data.valid, window=n) if fits[n] else None for n in fits}
    enough = fits[64] and len(data.valid) > 64
    return {
        "carried": score(model, data.valid),
        **windows,
        "crops_64": random_crops(model, data.valid, 64) if enough else None,
    }


def run(name: str, data: TokenData, seed: int, o: argparse.Namespace, results: Results) -> dict[str, Any]:
    vocabulary = data.tokenizer.vocab_size
    if entry := ours(vocabulary).get(name):
        model, done, how = train_ours(entry, name, data, seed, o)
    else:
        model, done, how = train_peer(peers(vocabulary)[name], name, data, seed, o, results)
    row = {
        "model": name,
        "seed": seed,
        "parameters": model.parameter_count(),
        **scores(model, data),
        **asdict(done),
        "tokens_per_second": done.tokens / max(done.seconds, 1e-9),
        "load": os.getloadavg()[0],
        "how": how,
    }
    say(f"{name}, seed {seed}: {row['carried']:.4f} nats/token, {done.steps} steps, {done.seconds:.0f} s")
    return row


def table(rows: Sequence[Mapping[str, Any]], tokens: int) -> str:
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        cells = [plus_minus([row[key] for row in mine]) if mine[0][key] is not None else "-" for key in SCORES]
        perplexity = f"{math.exp(sum(row['carried'] for row in mine) / len(mine)):.2f}"
        mean = {key: sum(row[key] for row in mine) / len(mine) for key in ("steps", "seconds", "tokens_per_second")}
        numbers = [f"{mean['steps']:,.0f}", f"{mean['seconds']:.0f}", f"{mean['tokens_per_second']:,.0f}"]
        lines.append([name, f"{mine[0]['parameters']:,}", *cells, perplexity, *numbers, str(len(mine))])
    names = ["carried", "windows of 64", "windows of 256", "random crops of 64"]
    header = ["model", "parameters", *names, "perplexity", "steps", "seconds", "tokens/s", "seeds"]
    return f"Nats per token, over {tokens:,} validation tokens; mean ± standard deviation over seeds.\n\n" + markdown(
        header, lines
    )


def plot(rows: Sequence[Mapping[str, Any]], path: Path, by_time: bool) -> None:
    """Validation loss against time (or tokens), a line for each run, a colour for each model."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    names = list(dict.fromkeys(row["model"] for row in rows))
    for number, name in enumerate(names):
        for first, row in enumerate([row for row in rows if row["model"] == name]):
            xs = [point[0] if by_time else point[1] for point in row["curve"]]
            ys = [point[2] for point in row["curve"]]
            panel.plot(xs, ys, color=f"C{number}", alpha=0.8, lw=1.2, label=name if first == 0 else None)
    lowest = min(point[2] for row in rows for point in row["curve"])
    panel.set(xlabel="seconds of training" if by_time else "tokens read", ylabel="validation, nats per token")
    panel.set_ylim(lowest - 0.05, lowest + 1.0)
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path)
    pyplot.close(figure)


def duration(text: str) -> float:
    try:
        return seconds(text)
    except LTCError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def settings_key(name: str, data: TokenData, o: argparse.Namespace) -> str:
    """Changes with whatever a run depends on, so that a result is never taken for that of other settings."""
    vocabulary = data.tokenizer.vocab_size
    entry = ours(vocabulary).get(name)
    if entry is None:
        peer = peers(vocabulary)[name]
        depends = f"{peer.plan} {peer.width} {o.tune}"
    elif name == "liquid":
        preset = o.preset or entry.preset
        text = preset_text(preset) if preset not in (None, "auto") else preset
        depends = f"{entry.settings} {text} {o.set}"
    else:
        depends = str(entry)
    return hashlib.sha256(f"{depends} {o.parameters} {torch.get_num_threads()}".encode()).hexdigest()[:12]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="text file; its last tenth validates")
    parser.add_argument("--tokenizer", default="char", help="char, word, or any that ltc train takes")
    parser.add_argument("--models", type=lambda text: text.split(","), help="all if not given")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--budget", type=duration, dest="seconds", help="time of each run: 80s, 3m (the default is 80s)")
    long.add_argument("--tokens", type=int, help="training tokens of each run")
    long.add_argument("--steps", type=int, help="optimizer steps of each run, whatever the batches are")
    parser.add_argument("--parameters", type=int, help="choose widths so that all have about this many parameters")
    parser.add_argument("--preset", help="preset of `liquid`; auto is this package's own choice")
    parser.add_argument("--set", action="append", default=[], help="setting of `liquid`, as of ltc train")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates of the peers first")
    parser.add_argument("--threads", type=int, help="CPU threads; all cores if not given")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves (needs the extra 'plot')")
    parser.add_argument("--out", type=Path, help="JSON file of the results; what it holds already is not run again")
    options = parser.parse_args(given)
    if options.plot and find_spec("matplotlib") is None:  # before the minutes of training, not after
        parser.error("--plot needs matplotlib: pip install 'ltc-textgen[plot]'")
    if options.preset == "auto" and options.parameters:
        parser.error("--preset auto chooses the width itself: leave out --parameters")
    if not (options.seconds or options.tokens or options.steps):
        options.seconds = 80.0
    options.length_key = f"{options.seconds} s {options.tokens} tokens {options.steps} steps"
    return options


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    process_env.tune()
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="ltc-words-") as folder:
        if options.tokenizer == "word":
            options.tokenizer = str(word_tokenizer(options.corpus, Path(folder)))
        data = prepare(DataConfig(data=options.corpus, tokenizer=options.tokenizer), say)
        results = Results(options.out)
        known = [*ours(data.tokenizer.vocab_size), *peers(data.tokenizer.vocab_size)]
        chosen = options.models or known
        if unknown := [name for name in chosen if name not in known]:
            raise SystemExit(f"--models: {', '.join(unknown)} is none of {', '.join(known)}")
        keys = []
        for seed in options.seeds:
            for name in chosen:
                settings = settings_key(name, data, options)
                key = f"{data.fingerprint[:12]} {options.length_key} {settings} | {name} | {seed}"
                keys.append(key)
                if key not in results:
                    results.add(key, run(name, data, seed, options, results))
        rows = [results.rows[key] for key in keys]
        print(table(rows, len(data.valid) - 1))
        if options.plot:
            plot(rows, options.plot, by_time=options.seconds is not None)
        facts = {"command": " ".join(sys.argv[1:]), "threads": torch.get_num_threads()}
        facts["vocabulary"] = data.tokenizer.vocab_size
        print(f"\n{json.dumps({**facts, 'valid_tokens': len(data.valid) - 1, 'results': rows})}")


if __name__ == "__main__":
    main()
