"""`ltc inspect`: what a run directory holds, what its neurons learned, and how its loss fell."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltc_textgen.commands import plots
from ltc_textgen.commands.common import DEFAULT_RUN, Json, RunDirectory, print_json
from ltc_textgen.errors import UsageError

if TYPE_CHECKING:
    from ltc_textgen.artifacts import Run
    from ltc_textgen.shapes import Tensor

EXAMPLES = """Examples:

`ltc inspect runs/book`

`ltc inspect runs/book --text "To be, or not to be" --json`

`ltc inspect runs/book --plot curve.png` (needs the extra: pip install 'ltc-textgen[plot]')

`ltc inspect runs/book --text "To be, or not to be" --plot-tau tau.svg`
"""

SPARKS = "▁▂▃▄▅▆▇█"
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
DEFAULT_TEXT = "The quick brown fox jumps over the lazy dog."


def inspect(
    run_dir: RunDirectory = DEFAULT_RUN,
    text: Annotated[str, typer.Option("--text", help="Text on which the time constants are measured.")] = DEFAULT_TEXT,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the loss curve into this image file.")] = None,
    plot_tau: Annotated[
        Path | None,
        typer.Option(
            "--plot-tau", help="Draw the time constants of some neurons, while --text is read, into this file."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a run: settings, size, result, time constants of every layer, and the loss curve."""
    from ltc_textgen.artifacts import load_run

    run = load_run(run_dir)
    curve = read_metrics(run_dir / "metrics.jsonl")
    ids = run.tokenizer.encode(text)
    if not ids:
        raise UsageError(f"--text {text!r} has no tokens")
    layers = time_constants(run, ids)
    report = {
        "model": run.model.settings.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "tokenizer": {"kind": run.tokenizer.kind, "size": run.tokenizer.vocab_size},
        "facts": run.facts,
        "time_constants": [quantiles(tau) for tau in layers],
        "curve": curve,
    }
    if plot is not None:
        plots.draw_curve(curve, plot)
    if plot_tau is not None:
        plots.draw_time_constants(layers, [run.tokenizer.token(index) for index in ids], plot_tau)
    if as_json:
        print_json(report)
        return
    _show(report, run_dir)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that hold a validation; a line that a crash cut off, or that is none, is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and record.get("val_loss") is not None:
            lines.append(record)
    return lines


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

    values = torch.quantile(tau.flatten(), torch.tensor(QUANTILES), interpolation="nearest").tolist()
    return {
        f"q{round(100 * q)}": value if math.isfinite(value) else None
        for q, value in zip(QUANTILES, values, strict=True)
    }


def spark(values: list[float]) -> str:
    """A curve as one line of block characters."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in values)


def _show(report: dict[str, Any], run_dir: Path) -> None:
    model, tokenizer = report["model"], report["tokenizer"]
    layers = f"{model['num_layers']} {model['block']} layer{'s' if model['num_layers'] > 1 else ''}"
    solver = f"{model['solver']} x {model['steps']}"
    print(f"{run_dir}: {layers} of width {model['hidden_size']}, {model['coupling']} coupling, {solver}")
    print(f"parameters      {report['parameters']:,}")
    print(f"tokenizer       {tokenizer['kind']}, {tokenizer['size']:,} tokens")
    for name, value in report["facts"].items():
        if not isinstance(value, dict | list) and name not in ("parameters", "tokenizer", "corpus_fingerprint"):
            print(f"{name.replace('_', ' '):<15} {value:,}" if isinstance(value, int) else f"{name:<15} {value}")
    if report["time_constants"]:
        print("time constants, in tokens:  shortest   10 %   median   90 %   longest")
        for number, row in enumerate(report["time_constants"]):
            print(
                f"  layer {number:<18}"
                + "".join(f"{math.inf if value is None else value:>9.2f}" for value in row.values())
            )
    losses = [record["val_loss"] for record in report["curve"]]
    if losses:
        print(f"validation loss  {losses[0]:.3f} {spark(losses)} {losses[-1]:.3f} nats/token")
