"""`ltc inspect`: contents, time constants and curves of a run, or several runs compared."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltc_textgen.cli import plots, runs
from ltc_textgen.cli.common import DEFAULT_RUN, Json
from ltc_textgen.cli.curves import CURVES, is_number, named_curves, points, read_metrics, resampled, spark
from ltc_textgen.data.normalize import normalize
from ltc_textgen.errors import ArtifactError, DataError, UsageError
from ltc_textgen.io.output import print_filled, print_json, print_line
from ltc_textgen.io.paths import run_path, user_path

if TYPE_CHECKING:
    from ltc_textgen.config import ModelConfig, RunConfig
    from ltc_textgen.data.tokenizers import TextTokenizer
    from ltc_textgen.runs import Run
    from ltc_textgen.shapes import Tensor

EXAMPLES = """Examples:

`ltc inspect runs/book`

`ltc inspect runs/book --text "To be, or not to be" --json`

`ltc inspect runs/a runs/b --plot both.png` (compared)

`ltc inspect runs/book --plot curve.png` (needs the extra: pip install 'ltc-textgen[plot]')

`ltc inspect runs/book --text "To be, or not to be" --plot-tau tau.svg`
"""

COLUMNS = 30
"""Characters of a curve on the terminal."""

LATER = "weights, and with them time constants, come with the first validation"

DEFAULT_TEXT = "The quick brown fox jumps over the lazy dog."


RunDirectories = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[RUN_DIR]...", help="Run directory that `ltc train` wrote; several are compared."),
]
Text = Annotated[str, typer.Option("--text", help="Text on which the time constants are measured.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the curves into this image file.")]
PlotTau = Annotated[
    Path | None,
    typer.Option("--plot-tau", help="Draw time constants of some neurons, while --text is read, into this file."),
]


def inspect(
    run_dirs: RunDirectories = None,
    text: Text = DEFAULT_TEXT,
    plot: Plot = None,
    plot_tau: PlotTau = None,
    as_json: Json = False,
) -> None:
    """Show a run: settings, size, result, time constants of every layer, and its curves.

    The curves are the loss in training and validation, the learning rate and the speed, over the steps. A run that was
    not validated yet has no weights, hence no time constants. Several runs are compared: size and result, the settings
    in which they differ, and their losses on common axes.
    """
    paths = [run_path(path) for path in run_dirs or [DEFAULT_RUN]]
    if plot_tau is not None and len(paths) > 1:
        raise UsageError("--plot-tau draws one run: give one RUN_DIR")
    documents = {str(path): examine(path, text, plot_tau) for path in paths}
    if plot is not None:
        curves = {name: named_curves(one["steps"] + one["curve"]) for name, one in documents.items()}
        plots.draw_curves(curves, user_path(plot))
    if len(paths) > 1:
        print_json(documents) if as_json else _compare(documents)
        return
    (document,) = documents.values()
    print_json(document) if as_json else _show(document, paths[0])


def examine(run_dir: Path, text: str, plot_tau: Path | None = None) -> dict[str, Any]:
    """The facts of a run directory, as the command's JSON document.

    Args:
        run_dir: Run directory.
        text: Text on which the time constants are measured.
        plot_tau: Image file for the time constants.

    Raises:
        ArtifactError: If it is no run, damaged, or has no weights for `plot_tau`.
        UsageError: If the text has no tokens.
    """
    records = read_metrics(run_dir / "metrics.jsonl")
    curve = [record for record in records if is_number(record.get("val_loss"))]
    contents = read_contents(run_dir, validated=bool(curve))
    if plot_tau is not None and contents.run is None:
        raise ArtifactError(f"--plot-tau: {run_dir} has no time constants yet: {LATER}")
    ids = contents.tokenizer.encode(normalize(text, "--text"))
    if not ids:
        raise UsageError(f"--text {text!r} has no tokens")
    layers = None if contents.run is None else time_constants(contents.run, ids)
    if plot_tau is not None and layers is not None:
        tokens = [contents.tokenizer.token(index) for index in ids]
        plots.draw_time_constants(layers, tokens, user_path(plot_tau))
    from ltc_textgen.memory import memory_facts

    return {
        "model": contents.settings.model_dump(mode="json"),
        "parameters": contents.parameters,
        "tokenizer": {"kind": contents.tokenizer.kind, "size": contents.tokenizer.vocab_size},
        "settings": contents.chosen,
        "facts": contents.facts,
        "memory": memory_facts(run_dir),
        "time_constants": None if layers is None else [_quantiles(tau) for tau in layers],
        "curve": curve,
        "steps": [record for record in records if is_number(record.get("loss"))],
    }


@dataclass(frozen=True)
class Contents:
    """The facts that a run directory holds.

    Args:
        settings: Of the model.
        tokenizer: Of the run.
        parameters: Numbers that are learned.
        chosen: Settings of data and training that training.json has otherwise than by default, "section.key".
        facts: What training.json says besides the settings.
        run: The run itself, with its weights; None before its first validation.
    """

    settings: "ModelConfig"
    tokenizer: "TextTokenizer"
    parameters: int
    chosen: dict[str, Any]
    facts: dict[str, Any]
    run: "Run | None"


def read_contents(run_dir: Path, validated: bool) -> Contents:
    """Read a run directory, also one that is being trained and was not validated yet.

    Args:
        run_dir: Run directory.
        validated: Whether the run was, so that there must be weights.

    Raises:
        ArtifactError: If it is no run, or damaged.
    """
    from ltc_textgen.data.tokenizers import TextTokenizer
    from ltc_textgen.io.checked import PICKLES
    from ltc_textgen.runs import WEIGHTS, load_facts, load_run, load_settings

    weights = any((run_dir / name).exists() for name in (WEIGHTS, *PICKLES))
    if validated or weights or not (run_dir / "training.json").is_file():
        run = load_run(run_dir)
        count = sum(p.numel() for p in run.network.parameters())
        return Contents(run.network.settings, run.tokenizer, count, _chosen(run.config), run.facts, run)
    settings, (config, facts) = load_settings(run_dir), load_facts(run_dir / "training.json")
    if not isinstance(facts.get("parameters"), int):
        raise ArtifactError(f"{run_dir / 'training.json'} is damaged: it lacks run, or facts with parameters")
    try:
        tokenizer = TextTokenizer.load(run_dir)
    except DataError as error:
        raise ArtifactError(str(error)) from None
    return Contents(settings, tokenizer, facts["parameters"], _chosen(config), facts, None)


def _chosen(config: "RunConfig | None") -> dict[str, Any]:
    if config is None:
        return {}
    values = config.model_dump(mode="json", include={"data", "train"}, exclude_defaults=True)
    return {f"{section}.{key}": value for section, settings in values.items() for key, value in settings.items()}


def time_constants(run: "Run", ids: list[int]) -> "list[Tensor]":
    """Time constants, in tokens, of every neuron at every token that the network reads: (T, N) a layer.

    They are tau_sys, or its analogue in the closed form (see `layers.cfc`).
    """
    import torch

    with torch.inference_mode():
        return [tau[0].float() for tau in run.network.time_constants(torch.tensor([ids]))]


def _quantiles(tau: "Tensor") -> dict[str, float | None]:
    """Of the time constants of a layer, over tokens and neurons; None where one is infinite, which JSON has not."""
    from ltc_textgen.model.quantiles import QUANTILES, quantiles

    values = zip(QUANTILES, quantiles(tau), strict=True)
    return {f"q{round(100 * q)}": value if math.isfinite(value) else None for q, value in values}


def _show(report: dict[str, Any], run_dir: Path) -> None:
    model, tokenizer = report["model"], report["tokenizer"]
    layers = f"{model['num_layers']} {model['block']} layer{'s' if model['num_layers'] > 1 else ''}"
    solver = f"{model['solver']} x {model['steps']}"
    print_line(f"{run_dir}: {layers} of width {model['hidden_size']}, {model['coupling']} coupling, {solver}")
    print_line(f"parameters      {report['parameters']:,}")
    print_line(f"tokenizer       {tokenizer['kind']}, {tokenizer['size']:,} tokens")
    chosen = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in report["settings"].items())
    if chosen:
        print_filled(f"settings        {chosen}", 16)
    for name, value in report["facts"].items():
        if not isinstance(value, dict | list) and name not in ("parameters", "tokenizer", "corpus_fingerprint"):
            print_line(f"{name.replace('_', ' '):<15} {value:,}" if isinstance(value, int) else f"{name:<15} {value}")
    if memory := report["memory"]:
        size = f"order {memory['order']}, {memory['tokens']:,} tokens, {memory['bytes'] / 2**20:.1f} MB"
        losses = f"{memory['mixed_loss']:.4f} nats/token with it, {memory['network_loss']:.4f} without"
        print_filled(f"n-gram memory   {size}; {losses}", 16)
    if report["time_constants"] is None:
        print_line(f"time constants  none yet: {LATER}")
    elif report["time_constants"]:
        print_line("time constants, in tokens:  shortest   10 %   median   90 %   longest")
        for number, row in enumerate(report["time_constants"]):
            print_line(
                f"  layer {number:<18}"
                + "".join(f"{math.inf if value is None else value:>9.2f}" for value in row.values())
            )
    _show_curves(report["steps"] + report["curve"])


def _show_curves(records: list[dict[str, Any]]) -> None:
    for name, (*keys, form) in CURVES.items():
        curve = sorted(points(records, *keys))
        if not curve:
            continue
        first, last, low, high = (
            form.format(value) for value in (curve[0][1], curve[-1][1], *_limits([value for _, value in curve]))
        )
        drawn = spark(resampled(curve, COLUMNS))
        print_line(f"{name:<15}{first:>8} {drawn:<{COLUMNS}} {last:<8} {low:>7} to {high}")


def _compare(runs_by_name: dict[str, dict[str, Any]]) -> None:
    """Print several runs: a table, the settings in which they differ, and their losses on common axes."""
    documents = list(runs_by_name.values())
    for line in runs.table([runs.summary(Path(name)) for name in runs_by_name]):
        print_line(line)
    settings = [{f"model.{key}": value for key, value in one["model"].items()} | one["settings"] for one in documents]
    different = {
        key: [json.dumps(one.get(key), ensure_ascii=False) for one in settings]
        for key in dict.fromkeys(key for one in settings for key in one)
        if any(one.get(key) != settings[0].get(key) for one in settings)
    }
    if different:
        print_line("settings that differ, in this order:")
    for key, values in different.items():
        text = f"  {key:<26} {'  |  '.join(values)}"
        print_filled(text, 29)
    for name in ("training loss", "validation loss"):
        *keys, form = CURVES[name]
        curves = [sorted(points(one["steps"] + one["curve"], *keys)) for one in documents]
        every = [point for curve in curves for point in curve]
        if not every:
            continue
        steps, limits = _limits([step for step, _ in every]), _limits([value for _, value in every])
        low, high = (form.format(value) for value in limits)
        print_line(f"{name}, {low} to {high}, steps {steps[0]:,} to {steps[1]:,}:")
        for path, curve in zip(runs_by_name, curves, strict=True):
            label = path if len(path) <= 24 else "~" + path[-23:]
            end = form.format(curve[-1][1]) if curve else "-"
            print_line(f"  {label:<24} {spark(resampled(curve, COLUMNS, steps), limits)} {end:>8}")


def _limits(values: list[Any]) -> tuple[Any, Any]:
    return min(values), max(values)
