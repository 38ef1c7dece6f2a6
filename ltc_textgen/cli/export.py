"""`ltc export`: a trained network as files that run without PyTorch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ltc_textgen.cli.common import (
    DEFAULT_RUN,
    Json,
    RunDirectory,
    Threads,
    finite,
    prepare_torch,
    progress_bar,
)
from ltc_textgen.config import DataConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.io.output import print_json, print_line, print_message
from ltc_textgen.io.paths import user_path

EXAMPLES = """Examples:

`ltc export runs/book` (writes runs/book/onnx)

`ltc export runs/book --int8 --out book-onnx`

`ltc export runs/book --int8 --data other-book.txt --json`

`python runs/book/onnx/generate.py "It was" --max-tokens 300`
"""


def export(
    run_dir: RunDirectory = DEFAULT_RUN,
    format: Annotated[str, typer.Option("--format", help="onnx: a graph that reads one token.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory to make; RUN_DIR/onnx if not given.", show_default=False)
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also write the model with its matrices in int8, and measure what that costs."),
    ] = False,
    int8_limit: Annotated[
        float,
        typer.Option(
            "--int8-limit", min=0, max=1e6, callback=finite, help="Percent of perplexity that --int8 may cost."
        ),
    ] = 1.0,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text on which --int8 is measured; the run's validation text if not given."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there already.")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a network as ONNX, with a program and a page that run it, and check it against PyTorch first.

    The graph reads one token: token, elapsed time and state in; logits, state and time constants out. It is followed
    over 10,000 chained tokens; if a logit differs by more than 1e-4, nothing is left behind.
    """
    if format != "onnx":
        raise UsageError(f"--format {format}: expected onnx")
    if data is not None and not int8:
        raise UsageError("--data is the text on which int8 is measured: it needs --int8")
    from ltc_textgen.export import export_onnx
    from ltc_textgen.memory import memory_facts
    from ltc_textgen.runs import load_run

    run = load_run(user_path(run_dir), prepare_torch("cpu", threads))
    if memory_facts(run.path) is not None:
        print_message("the n-gram memory is not exported: the programs write as `ltc generate --memory 0` does")
    result = export_onnx(
        run,
        user_path(run_dir / "onnx" if out is None else out),
        text=measured_text(run.config.data if run.config else DataConfig(), data) if int8 else None,
        most_loss=int8_limit,
        overwrite=overwrite,
        notify=print_message,
        bar=progress_bar,
    )
    if as_json:
        print_json(result.to_dict())
        return
    size, rate = f"{result.bytes / 1e6:.2f} MB", f"{result.tokens_per_second:,.0f} tokens/s"
    print_line(
        f"{result.directory}: {size}, at most {result.max_difference:.1e} from PyTorch over {result.tokens:,} tokens, "
        f"{rate}"
    )
    if small := result.int8:
        again = ", read again to the end" if small["text_tokens"] <= small["tokens"] else ""
        print_line(
            f"int8: {small['bytes'] / 1e6:.2f} MB, perplexity {small['perplexity']:.4f} for "
            f"{small['perplexity_float32']:.4f} ({small['loss_percent']:+.2f} %) over {small['tokens']:,} tokens"
            f"{again}, {small['tokens_per_second']:,.0f} tokens/s"
        )


def measured_text(settings: DataConfig, data: str | None) -> Iterator[str]:
    """The documents of a text that the user named, or of the part that training held out."""
    from ltc_textgen.cli.evaluate import documents

    changes = {"data": data, "valid": None} if data else {}
    config = DataConfig.parse({**settings.model_dump(), **changes})
    return documents(config, "all" if data else "valid", print_message)
