"""`ltc inspect`: what a run directory holds, what its neurons learned, and how its loss fell."""

import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltc_textgen.cli import plots
from ltc_textgen.cli.common import DEFAULT_RUN, Json, RunDirectory
from ltc_textgen.errors import ArtifactError, DataError, UsageError
from ltc_textgen.io.output import print_json, print_line

if TYPE_CHECKING:
    from ltc_textgen.config import ModelConfig, RunConfig
    from ltc_textgen.data.tokenizers import TextTokenizer
    from ltc_textgen.runs import Run
    from ltc_textgen.shapes import Tensor

EXAMPLES = """Examples:

`ltc inspect runs/book`

`ltc inspect runs/book --text "To be, or not to be" --json`

`ltc inspect runs/book --plot curve.png` (needs the extra: pip install 'ltc-textgen[plot]')

`ltc inspect runs/book --text "To be, or not to be" --plot-tau tau.svg`
"""

SPARKS = "▁▂▃▄▅▆▇█"
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
COLUMNS = 40
"""Characters of a curve on the terminal."""

CURVES: dict[str, tuple[str, ...]] = {
    "training loss": ("loss", "{:.3f}"),
    "validation loss": ("val_loss", "{:.3f}"),
    "learning rate": ("learning_rate", "loss", "{:.2g}"),
    "tokens/s": ("tokens_per_second", "loss", "{:,.0f}"),
}
"""What is drawn: the key of its values in metrics.jsonl, a key that marks its lines, and how a value is written."""

LATER = "weights, and with them time constants, come with the first validation"

DEFAULT_TEXT = "The quick brown fox jumps over the lazy dog."


def inspect(
    run_dir: RunDirectory = DEFAULT_RUN,
    text: Annotated[str, typer.Option("--text", help="Text on which the time constants are measured.")] = DEFAULT_TEXT,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the curves into this image file.")] = None,
    plot_tau: Annotated[
        Path | None,
        typer.Option(
            "--plot-tau", help="Draw the time constants of some neurons, while --text is read, into this file."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a run: settings, size, result, time constants of every layer, and its curves.

    The curves are the loss in training and validation, the learning rate and the speed, over the steps. A run that was
    not validated yet has no weights, hence no time constants.
    """
    records = read_metrics(run_dir / "metrics.jsonl")
    curve = [record for record in records if is_number(record.get("val_loss"))]
    contents = read_contents(run_dir, validated=bool(curve))
    if plot_tau is not None and contents.run is None:
        raise ArtifactError(f"--plot-tau: {run_dir} has no time constants yet: {LATER}")
    ids = contents.tokenizer.encode(text)
    if not ids:
        raise UsageError(f"--text {text!r} has no tokens")
    layers = None if contents.run is None else time_constants(contents.run, ids)
    report = {
        "model": contents.settings.model_dump(mode="json"),
        "parameters": contents.parameters,
        "tokenizer": {"kind": contents.tokenizer.kind, "size": contents.tokenizer.vocab_size},
        "settings": contents.chosen,
        "facts": contents.facts,
        "time_constants": None if layers is None else [quantiles(tau) for tau in layers],
        "curve": curve,
        "steps": [record for record in records if is_number(record.get("loss"))],
    }
    if plot is not None:
        plots.draw_curves({name: points(records, *keys) for name, (*keys, _) in CURVES.items()}, plot)
    if plot_tau is not None and layers is not None:
        plots.draw_time_constants(layers, [contents.tokenizer.token(index) for index in ids], plot_tau)
    if as_json:
        print_json(report)
        return
    _show(report, run_dir)


@dataclass(frozen=True)
class Contents:
    """What a run directory says of a run.

    Args:
        settings: Of the model.
        tokenizer: Of the run.
        parameters: Numbers that are learned.
        chosen: Settings of data and training that training.json has otherwise than by default, "section.key".
        facts: What training.json says beside the settings.
        run: The run itself, with its weights; None before its first validation.
    """

    settings: "ModelConfig"
    tokenizer: "TextTokenizer"
    parameters: int
    chosen: dict[str, Any]
    facts: dict[str, Any]
    run: "Run | None"


def read_contents(run_dir: Path, validated: bool) -> Contents:
    """Read a run directory, also that of a run that goes on and was not validated yet.

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
        count = sum(p.numel() for p in run.model.parameters())
        return Contents(run.model.settings, run.tokenizer, count, _chosen(run.config), run.facts, run)
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that belong to a step; a line that a crash cut off, or that is none, is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and is_number(record.get("step")):
            lines.append(record)
    return lines


def is_number(value: object) -> bool:
    """Whether a value of a line is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def points(records: list[dict[str, Any]], key: str, *marks: str) -> list[tuple[int, float]]:
    """The steps and values of a curve: of `key`, in lines that have a number under the keys in `marks` too."""
    return [(line["step"], line[key]) for line in records if all(is_number(line.get(k)) for k in (key, *marks))]


def time_constants(run: "Run", ids: list[int]) -> "list[Tensor]":
    """Time constants, in tokens, of every neuron at every token that the network reads: (T, N) a layer.

    They are tau_sys, and what comes nearest to it in the closed form (see `cells.cfc`).
    """
    import torch

    with torch.inference_mode():
        return [tau[0].float() for tau in run.model.time_constants(torch.tensor([ids]))]


def quantiles(tau: "Tensor") -> dict[str, float | None]:
    """Of the time constants of a layer, over tokens and neurons; None where one is infinite, which JSON has not."""
    import torch

    ordered = tau.flatten().sort().values  # torch.quantile refuses many
    values = ordered[(torch.tensor(QUANTILES) * (len(ordered) - 1)).round().long()].tolist()
    return {
        f"q{round(100 * q)}": value if math.isfinite(value) else None
        for q, value in zip(QUANTILES, values, strict=True)
    }


def resampled(curve: list[tuple[int, float]], columns: int = COLUMNS) -> list[float]:
    """Means of a curve over at most `columns` equal spans of steps; a span without a point repeats the one before."""
    if len(curve) <= columns:
        return [value for _, value in curve]
    first, last = curve[0][0], curve[-1][0]
    spans: list[list[float]] = [[] for _ in range(columns)]
    for step, value in curve:
        spans[min((step - first) * columns // max(last - first, 1), columns - 1)].append(value)
    means: list[float] = []
    for span in spans:
        means.append(sum(span) / len(span) if span else means[-1])
    return means


def spark(values: list[float]) -> str:
    """A curve as one line of block characters."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in values)


def _show(report: dict[str, Any], run_dir: Path) -> None:
    model, tokenizer = report["model"], report["tokenizer"]
    layers = f"{model['num_layers']} {model['block']} layer{'s' if model['num_layers'] > 1 else ''}"
    solver = f"{model['solver']} x {model['steps']}"
    print_line(f"{run_dir}: {layers} of width {model['hidden_size']}, {model['coupling']} coupling, {solver}")
    print_line(f"parameters      {report['parameters']:,}")
    print_line(f"tokenizer       {tokenizer['kind']}, {tokenizer['size']:,} tokens")
    chosen = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in report["settings"].items())
    if chosen:
        print_line(textwrap.fill(f"settings        {chosen}", 120, subsequent_indent=" " * 16, break_long_words=False))
    for name, value in report["facts"].items():
        if not isinstance(value, dict | list) and name not in ("parameters", "tokenizer", "corpus_fingerprint"):
            print_line(f"{name.replace('_', ' '):<15} {value:,}" if isinstance(value, int) else f"{name:<15} {value}")
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
        values = [value for _, value in curve]
        text = (
            f"{name:<15} {form.format(values[0]):>9} {spark(resampled(curve)):<{COLUMNS}} {form.format(values[-1]):>9}"
        )
        print_line(f"{text}  (lowest {form.format(min(values))}, highest {form.format(max(values))})")
