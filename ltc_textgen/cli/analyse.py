"""`ltc analyse`: what the neurons of a run do on a text."""

import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltc_textgen.cli.common import DEFAULT_RUN, Device, Json, RunDirectory, Threads, prepare_torch, progress_bar
from ltc_textgen.config import DataConfig
from ltc_textgen.errors import DataError
from ltc_textgen.io.output import is_terminal, print_filled, print_json, print_line, print_message
from ltc_textgen.io.paths import user_path
from ltc_textgen.settings import shortened

if TYPE_CHECKING:
    from ltc_textgen.analysis import Trace
    from ltc_textgen.runs import Run

PAIRS = 4
"""Distances of the memory curve on a line of 80 columns."""

EXAMPLES = """Examples:

`ltc analyse demo --text play.txt`

`ltc analyse runs/book --text book.txt --html report.html` (one page that needs nothing else)

`ltc analyse runs/book --text book.txt --find quotes --find 'regex:said [A-Z]\\w+'`

`ltc analyse runs/book --text book.txt --plot tau.svg` (needs the extra: pip install 'ltc-textgen[plot]')

`ltc analyse runs/book --text book.txt --save-trace book.trace --json`
"""

Text = Annotated[
    str, typer.Option("--text", metavar="FILE", help="Text to analyse: a file, as `--data` of `ltc eval`.")
]
Tokens = Annotated[
    int, typer.Option("--tokens", min=200, max=10**7, help="Tokens of the text that are traced, from its beginning.")
]
Find = Annotated[
    list[str] | None,
    typer.Option(
        "--find",
        metavar="LABEL",
        help="Which neuron follows it: quotes, brackets, capitals, digits, spaces, vowels, "
        "line_start, line_position, word_position, speaker, rare_words, frequent_words, or regex:EXPRESSION.",
    ),
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw half-lives and memory curve into this image file.")]
SaveTrace = Annotated[
    Path | None, typer.Option("--save-trace", help="Keep the trace in this safetensors file (see `Trace.load`).")
]


def analyse(
    run_dir: RunDirectory = DEFAULT_RUN,
    text: Text = ...,  # type: ignore[assignment]
    tokens: Tokens = 12_000,
    find: Find = None,
    html: Html = None,
    plot: Plot = None,
    save_trace: SaveTrace = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show what the neurons of a run do on a text: half-lives, what they follow, and what is lost without them.

    A search for neurons that follow a property of the text (correlation) is confirmed on the half of the text that did
    not choose them, and compared with shifted labels; silencing a neuron (intervention) shows whether it is used.
    """
    from ltc_textgen.runs import load_run

    run = load_run(user_path(run_dir), prepare_torch(device, threads))
    content = _content(text, tokens)
    with tempfile.TemporaryDirectory(prefix="ltc-analyse-") as folder:
        seen = _trace(run, content, tokens, user_path(save_trace or Path(folder) / "trace"))
        from ltc_textgen.analysis.report import analyse as report_of

        document = {"run": str(run_dir), "text": text, **report_of(run.network, seen, find or [], progress=_progress)}
        if html is not None:
            from ltc_textgen.analysis.page import page
            from ltc_textgen.io.atomic import write_atomic

            write_atomic(user_path(html), page(document, seen, str(run_dir), Path(text).name))
        if plot is not None:
            from ltc_textgen.analysis import half_lives
            from ltc_textgen.cli import plots

            plots.draw_analysis(half_lives(seen), document["memory_curve"], user_path(plot))
        del seen  # unmaps the file before its folder is removed
    if as_json:
        print_json(document)
    else:
        _show(document)


def _content(name: str, tokens: int) -> str:
    """The beginning of a text, long enough for so many tokens."""
    from ltc_textgen.cli.evaluate import documents

    found, size = [], 0
    for document in documents(DataConfig.parse({"data": [name]}), "all", print_message):
        found.append(document)
        size += len(document)
        if size >= 32 * tokens:  # no tokenizer takes more characters for a token, on average
            break
    return "\n".join(found)[: 32 * tokens]


def _trace(run: "Run", content: str, tokens: int, path: Path) -> "Trace":
    import torch

    from ltc_textgen.analysis import trace

    ids = run.tokenizer.encode(content)[:tokens]
    if len(ids) < 200:
        raise DataError(f"--text: it has {len(ids)} tokens, at least 200 are needed")
    with progress_bar("reading") as advance:
        return trace(run.network, torch.tensor([ids]), run.tokenizer, path=path, progress=advance)


def _progress(part: str) -> None:
    if is_terminal(sys.stderr):
        print_message(f"{part} ...")


def _show(report: dict[str, Any]) -> None:
    print_line(f"{report['run']} on {report['text']}: {report['tokens']:,} tokens, {report['loss']:.4f} nats per token")
    lives = report["half_lives"]
    print_line("half-lives, in tokens:   shortest    10 %  median    90 %  longest")
    for number, layer in enumerate(lives["layers"]):
        print_line(f"  layer {number:<16}" + "".join(f"{_number(value):>8}" for value in layer["half_life"]))
    for name in ("inverse_gamma", "log_normal"):
        fit = lives[name]
        print_filled(
            f"  {name.replace('_', ' '):<16} shape {fit['shape']:.3f}, scale {fit['scale']:.3f}, "
            f"log likelihood {fit['log_likelihood']:.4f} per neuron, distance {fit['distance']:.3f}",
            19,
        )
    if report["effective_timescale"]:
        layers = report["effective_timescale"]["layers"]
        medians = ", ".join(_number(layer["median"]) for layer in layers)
        print_filled(f"effective timescales     median half-distance by layer: {medians} tokens", 25)
    curve = report["memory_curve"]
    pairs = [f"{k}: {increase:+.3f}" for k, increase in zip(curve["distance"], curve["increase"], strict=True)]
    for start in range(0, len(pairs), PAIRS):
        head = "" if start else "memory curve"
        print_line(f"{head:<25}{'  '.join(pairs[start : start + PAIRS])}")
    print_line("correlation: label       best neuron     AUC   shifted, median and highest     p")
    for name, found in report["correlation"].items():
        base = found["baseline"]
        print_line(
            f"  {shortened(name, 22):<22} {found['neurons'][0]:<12}{found['auc'][0]:>7.3f}"
            f"{base['median']:>17.3f}{base['highest']:>13.3f}{found['p_value']:>6.2f}"
        )
    print_line("intervention: neuron  half-life  loss without it (with the label, without)")
    for neuron in report["neurons"]:
        effect = neuron["intervention"]
        parts = ", ".join(
            "-" if effect[key] is None else f"{effect[key]:+.4f}" for key in ("with_label", "without_label")
        )
        change = f"{effect['all']['change']:+.4f} ({parts})"
        half = _number(neuron["half_life"])
        label = shortened(neuron["correlation"]["label"], 20)
        print_line(f"  {neuron['name']:<19}{half:>10}  {change} {label}")
    print_line("intervention: half-lives of a silenced band   loss   rare words  frequent words")
    for row in report["routing"]:
        low, high = (_number(value) for value in row["half_life"])
        words = [f"{row['words'][kind]:+.4f}" if kind in row["words"] else "-" for kind in ("rare", "frequent")]
        print_line(f"  {low:>8} to {high:<14}{row['change']:>+16.4f}{words[0]:>12}{words[1]:>14}")


def _number(value: float) -> str:
    return "inf" if not math.isfinite(value) else f"{value:.3g}"
