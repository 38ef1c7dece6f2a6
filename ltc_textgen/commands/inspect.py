"""`ltc inspect`: what a run directory holds, what its neurons learned, and how its loss fell."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltc_textgen.commands.common import DEFAULT_RUN, Json, RunDirectory, print_json
from ltc_textgen.errors import UsageError

if TYPE_CHECKING:
    from ltc_textgen.artifacts import Run

EXAMPLES = """Examples:

`ltc inspect runs/book`

`ltc inspect runs/book --text "To be, or not to be" --json`

`ltc inspect runs/book --plot curve.png` (needs the extra: pip install 'ltc-textgen[plot]')
"""

SPARKS = "▁▂▃▄▅▆▇█"
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
DEFAULT_TEXT = "The quick brown fox jumps over the lazy dog."


def inspect(
    run_dir: RunDirectory = DEFAULT_RUN,
    text: Annotated[str, typer.Option("--text", help="Text on which the time constants are measured.")] = DEFAULT_TEXT,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the loss curve into this image file.")] = None,
    as_json: Json = False,
) -> None:
    """Show a run: settings, size, result, time constants of every layer, and the loss curve."""
    from ltc_textgen.artifacts import load_run

    run = load_run(run_dir)
    curve = read_metrics(run_dir / "metrics.jsonl")
    report = {
        "model": run.model.settings.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "tokenizer": {"kind": run.tokenizer.kind, "size": run.tokenizer.vocab_size},
        "facts": run.facts,
        "time_constants": time_constants(run, text),
        "curve": curve,
    }
    if plot is not None:
        draw(curve, plot)
    if as_json:
        print_json(report)
        return
    _show(report, run_dir)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that hold a validation; a last line that a crash cut off is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "val_loss" in record:
            lines.append(record)
    return lines


def time_constants(run: "Run", text: str) -> list[dict[str, float]]:
    """Quantiles of tau_sys, in tokens, over the neurons and tokens of each layer, while the network reads `text`."""
    import torch

    ids = run.tokenizer.encode(text)
    if not ids:
        raise UsageError(f"--text {text!r} has no tokens")
    if run.model.settings.coupling == "cfc":
        return []  # the closed form has no tau_sys
    with torch.inference_mode():
        layers = run.model.time_constants(torch.tensor([ids]))
    levels = torch.tensor(QUANTILES)
    rows = [torch.quantile(tau.float().flatten(), levels).tolist() for tau in layers]
    return [{f"q{round(100 * q)}": value for q, value in zip(QUANTILES, row, strict=True)} for row in rows]


def spark(values: list[float]) -> str:
    """A curve as one line of block characters."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in values)


def draw(curve: list[dict[str, Any]], path: Path) -> None:
    """Draw losses over steps into an image file.

    Raises:
        UsageError: If there is no curve, matplotlib is missing, or the file's type is unknown.
    """
    if not curve:
        raise UsageError("--plot: the run has no validation in metrics.jsonl to draw")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'ltc-textgen[plot]'") from None
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        points = [(record["step"], record[name]) for record in curve if record.get(name) is not None]
        axes.plot(*zip(*points, strict=True), label=label) if points else None
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UsageError(f"--plot {path}: {error}") from None
    finally:
        pyplot.close(figure)


def _show(report: dict[str, Any], run_dir: Path) -> None:
    model, tokenizer = report["model"], report["tokenizer"]
    layers = f"{model['num_layers']} {model['block']} layer{'s' if model['num_layers'] > 1 else ''}"
    solver = f"{model['solver']} x {model['steps']}"
    print(f"{run_dir}: {layers} of width {model['hidden_size']}, {model['coupling']} coupling, {solver}")
    print(f"parameters  {report['parameters']:,}")
    print(f"tokenizer   {tokenizer['kind']}, {tokenizer['size']:,} tokens")
    for name, value in report["facts"].items():
        if not isinstance(value, dict | list):
            print(f"{name:<11} {value}")
    if report["time_constants"]:
        print("time constants, in tokens:  shortest   10 %   median   90 %   longest")
        for number, row in enumerate(report["time_constants"]):
            print(f"  layer {number:<18}" + "".join(f"{value:>9.2f}" for value in row.values()))
    losses = [record["val_loss"] for record in report["curve"]]
    if losses:
        print(f"validation loss  {losses[0]:.3f} {spark(losses)} {losses[-1]:.3f} nats/token")
