"""Language models at equal time, tokens or steps: this package, nn.LSTM and a GPT-2, on the same text and seeds.

    python benchmarks/language.py --corpus tinyshakespeare.txt --tokenizer char --budget 80s --plot curves.svg
    python benchmarks/language.py --corpus wikitext2.valid.txt --tokenizer word --budget 80s --parameters 2500000 \\
        --out words.json
    python benchmarks/language.py --corpus book.txt --tokenizer char --preset auto --budget 3m --models liquid,lstm

| model  | what it is                                                                      |
|--------|---------------------------------------------------------------------------------|
| liquid | this package's recipe (or --preset, --set), trained by `ltc train`              |
| lstm   | nn.LSTM with AWD-LSTM's dropouts and, for words, tied weights                   |
| gpt2   | the GPT-2 class of transformers; for characters nanoGPT's CPU configuration     |

The baselines are trained by one plain loop (`lib/training.py`) with the settings in `lib/settings.py`. `--tune` first
tries three learning rates for each at an eighth of the budget. The budget starts at the first step and includes
validation; the weights of the best validation are scored:

* `carried`: nats per token over all validation tokens but the first, state carried; GPT-2 reads windows of its context
  length that overlap by three quarters.
* `windows_64`, `windows_256`: the state is reset every 64 or 256 tokens.
* `crops_64`: nanoGPT's estimate, 20 rounds of 12 random crops of 64, as in its CPU configuration.

With --memory, every model is also scored with an n-gram memory of its training text, beside that memory alone and
PPMd (pip install pyppmd). The first part of the training text is held back from all of them, and the weights of the
mixtures are fitted on it. Static figures know the training text alone; adapting ones learn from each token after it was
scored: two tables, which answer two questions.

Seeds are the outer loop, so that drift of the machine meets all models alike. Prints a Markdown table; the last line of
stdout is one JSON document. With --out an interrupted sweep resumes and finished runs are not repeated.
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

from lib.compressor import ppmd
from lib.memory import with_memory
from lib.models import LanguageModel, Liquid
from lib.report import Results, integers, log, markdown, plus_minus, print_json
from lib.settings import Baseline, Ours, baseline_width, baselines, liquid_width, ours
from lib.training import Budget, Fit, fit, random_crops, score
from lib.word_tokenizer import word_tokenizer
from ltc_textgen.cli import main as cli
from ltc_textgen.cli import process_env
from ltc_textgen.cli.common import seconds
from ltc_textgen.config import DataConfig, TrainConfig
from ltc_textgen.data.token_cache import TokenData, prepare
from ltc_textgen.errors import LTCError
from ltc_textgen.presets.recipes import Recipe, assignments, load_preset, merge, preset_text
from ltc_textgen.runs import load_run
from ltc_textgen.training.budget import LENGTHS
from ltc_textgen.training.text_memory import default_order, hold_back

SCORES = ("carried", "windows_64", "windows_256", "crops_64")
SHORT = 1 / 8
"""Fraction of the budget of each run of `--tune`."""

TRIED = (0.5, 1.0, 2.0)
"""Multiples of a baseline's learning rate that `--tune` tries."""


def train_ours(
    entry: Ours, data: TokenData, seed: int, o: argparse.Namespace
) -> tuple[LanguageModel, Fit, dict[str, Any]]:
    """Train with `ltc train` and load the run directory."""
    preset = o.preset or entry.preset
    recipe = merge(load_preset(preset) if preset not in (None, "auto") else {}, {} if preset else entry.recipe())
    recipe = merge(recipe, assignments(o.set))
    if o.parameters and preset != "auto":
        width = liquid_width(recipe["model"], data.tokenizer.vocab_size, o.parameters)
        recipe = merge(recipe, {"model": {"hidden_size": width}})
    with tempfile.TemporaryDirectory(prefix="ltc-language-") as folder:
        out, config = Path(folder) / "run", Path(folder) / "recipe.json"
        config.write_text(json.dumps(recipe))
        command = ["train", "--data", o.corpus, "--tokenizer", o.tokenizer, "--seed", str(seed), "--out", str(out)]
        command += ["--threads", str(torch.get_num_threads()), "--set", "sample_tokens=0", "--json", *length(o, recipe)]
        command += ["--preset", "auto"] if preset == "auto" else ["--config", str(config)]
        command += [part for one in o.set for part in ("--set", one)]
        command += ["--set", "memory.enabled=true"] if o.memory else ["--no-memory"]
        result = command_result(command)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        run = load_run(out)
        train = json.loads((out / "training.json").read_text())["run"]["train"]
    per_step = train["batch_size"] * train["sequence_length"]
    curve = [(row["seconds"], row["step"] * per_step, row["val_loss"]) for row in lines if row.get("val_loss")]
    fields = ("step", "tokens", "seconds", "best_val_loss", "train_loss")
    how = {"preset": preset, "model": run.model.settings.model_dump(mode="json"), "train": train}
    return Liquid(run.model), Fit(*(result[name] for name in fields), curve), how


def command_result(command: list[str]) -> dict[str, Any]:
    """Run `ltc` in this process and return the JSON document it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()) as messages:
        code = cli.run(command)
    if code:
        raise LTCError(f"ltc {' '.join(command)}: exit code {code}\n{messages.getvalue()[-2000:]}")
    return json.loads(printed.getvalue().splitlines()[-1])


def length(o: argparse.Namespace, recipe: Recipe) -> list[str]:
    """The options of `ltc train` that set the length of the run."""
    if o.seconds:
        return ["--time-budget", f"{o.seconds}s"]
    if o.steps:
        return ["--max-steps", str(o.steps)]
    train = TrainConfig.parse({k: v for k, v in recipe.get("train", {}).items() if k not in LENGTHS})
    return ["--max-steps", str(math.ceil(o.tokens / (train.batch_size * train.sequence_length)))]


def train_baseline(
    entry: Baseline, name: str, data: TokenData, seed: int, o: argparse.Namespace, results: Results
) -> tuple[LanguageModel, Fit, dict[str, Any]]:
    vocabulary = data.tokenizer.vocab_size
    width = baseline_width(entry, vocabulary, o.parameters) if o.parameters else entry.width
    plan, tried = entry.plan, None
    if o.tune:
        tried = tuned(entry, name, width, data, o, results)
        plan = replace(plan, learning_rate=float(min(tried, key=lambda rate: tried[rate])))
    torch.manual_seed(seed)
    model = entry.make(vocabulary, width)
    done = fit(model, data.train, data.valid, plan, budget(o), seed)
    return model, done, {"width": width, "plan": asdict(plan), "tried_learning_rates": tried}


def tuned(
    entry: Baseline, name: str, width: int, data: TokenData, o: argparse.Namespace, results: Results
) -> dict[str, float]:
    """Validation loss by learning rate, from short runs with another seed."""
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
            log(f"{key}: {done.best_loss:.4f}")
        losses[f"{rate:g}"] = results.rows[key]["loss"]
    return losses


def budget(o: argparse.Namespace, fraction: float = 1.0) -> Budget:
    whole = {"seconds": o.seconds, "steps": o.steps, "tokens": o.tokens}
    scaled = {name: value * fraction for name, value in whole.items() if value}
    return Budget(**{name: value if name == "seconds" else max(1, round(value)) for name, value in scaled.items()})


def scores(model: LanguageModel, data: TokenData) -> dict[str, float | None]:
    """The scores described at the top; None where a transformer's context is too short."""
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
    if name == "liquid":
        model, done, how = train_ours(ours(vocabulary), data, seed, o)
    else:
        model, done, how = train_baseline(baselines(vocabulary)[name], name, data, seed, o, results)
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
    if o.memory:
        row["with_memory"] = memory_scores(model, data, o)
    log(f"{name}, seed {seed}: {row['carried']:.4f} nats/token, {done.steps} steps, {done.seconds:.0f} s")
    return row


def memory_scores(model: LanguageModel | None, data: TokenData, o: argparse.Namespace) -> dict[str, float]:
    """Losses with a memory of the training text; None scores the memory alone."""
    tokenizer = data.tokenizer
    order = default_order(tokenizer.kind) if o.order is None else o.order
    return with_memory(model, data.train, o.held_back, data.valid, tokenizer.vocab_size, tokenizer.eos_token_id, order)


def baseline_memories(data: TokenData, o: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Nats per token of what needs no training: the memory alone, and PPMd."""
    found = {"n-gram memory": memory_scores(None, data, o)}
    if find_spec("pyppmd") is None:
        log("PPMd is left out: pip install pyppmd")
        return found
    train, valid = ("\n".join(data.corpus.documents(part)) for part in ("train", "valid"))
    for order in (6, 8):
        nats = ppmd(train, valid, order)
        scale = len(valid) / (len(data.valid) - 1)
        found[f"PPMd, order {order}"] = {name: nats[name] * scale for name in ("static", "adapting")}
    return found


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


def memory_tables(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, float]], tokens: int) -> str:
    """One table of static losses, one of adapting losses."""
    named: dict[str, list[Mapping[str, float]]] = {name: [losses] for name, losses in found.items()}
    for row in rows:
        named.setdefault(row["model"], []).append(row["with_memory"])
    static, adapting = [], []
    for name, each in named.items():
        own = plus_minus([one["alone"] for one in each]) if name not in found else "-"
        static.append([name, own, plus_minus([one["static"] for one in each])])
        adapting.append([name, plus_minus([one["adapting"] for one in each])])
    head = f"Nats per token, over {tokens:,} validation tokens"
    first = f"{head}; nothing learned from them.\n\n" + markdown(["model", "alone", "with memory"], static)
    return f"{first}\n\n{head}; each learned from after it was scored.\n\n" + markdown(["model", "adapting"], adapting)


def plot(rows: Sequence[Mapping[str, Any]], path: Path, by_time: bool) -> None:
    """Plot validation loss against time (or tokens): one line per run, one colour per model."""
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
    """A digest of everything a run depends on, so that stored results of other settings are not reused."""
    vocabulary = data.tokenizer.vocab_size
    if name == "liquid":
        entry = ours(vocabulary)
        preset = o.preset or entry.preset
        text = preset_text(preset) if preset not in (None, "auto") else preset
        depends = f"{entry.settings} {text} {o.set}"
    else:
        baseline = baselines(vocabulary)[name]
        depends = f"{baseline.plan} {baseline.width} {o.tune}"
    depends += f" memory {o.order}" if o.memory else ""
    return hashlib.sha256(f"{depends} {o.parameters} {torch.get_num_threads()}".encode()).hexdigest()[:12]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="text file; its last tenth is held out")
    parser.add_argument("--tokenizer", default="char", help="char, word, or any that ltc train accepts")
    parser.add_argument("--models", type=lambda text: text.split(","), help="comma-separated; the default is all")
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2])
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--budget", type=duration, dest="seconds", help="time per run: 80s, 3m (the default is 80s)")
    long.add_argument("--tokens", type=int, help="training tokens per run")
    long.add_argument("--steps", type=int, help="optimizer steps per run")
    parser.add_argument(
        "--parameters", type=int, help="choose widths so that every model has about this many parameters"
    )
    parser.add_argument("--preset", help="preset of `liquid`, auto included")
    parser.add_argument("--set", action="append", default=[], help="setting of `liquid`, as of ltc train")
    parser.add_argument("--tune", action="store_true", help="tune the learning rates of the baselines first")
    parser.add_argument("--memory", action="store_true", help="also score every model with an n-gram memory")
    parser.add_argument("--order", type=int, help="tokens of the memory's longest context; the default is ours")
    parser.add_argument("--threads", type=int, help="CPU threads; the default is all cores")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the curves (needs the extra 'plot')")
    parser.add_argument("--out", type=Path, help="JSON file of results; runs that it contains are not repeated")
    options = parser.parse_args(given)
    if options.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'ltc-textgen[plot]'")
    if options.preset == "auto" and options.parameters:
        parser.error("--preset auto chooses the width: omit --parameters")
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
        data = prepare(DataConfig(data=options.corpus, tokenizer=options.tokenizer), log)
        if options.memory:
            data, options.held_back = hold_back(data, TrainConfig())
        results = Results(options.out)
        known = ["liquid", *baselines(data.tokenizer.vocab_size)]
        chosen = options.models or known
        if unknown := [name for name in chosen if name not in known]:
            raise SystemExit(f"--models: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
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
        memories = baseline_memories(data, options) if options.memory else {}
        if options.memory:
            print(f"\n{memory_tables(rows, memories, len(data.valid) - 1)}")
        if options.plot:
            plot(rows, options.plot, by_time=options.seconds is not None)
        facts = {"command": " ".join(sys.argv[1:]), "threads": torch.get_num_threads()}
        facts["vocabulary"] = data.tokenizer.vocab_size
        print_json({**facts, "valid_tokens": len(data.valid) - 1, "memories": memories, "results": rows})


if __name__ == "__main__":
    main()
