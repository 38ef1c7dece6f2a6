"""`ltc eval`: measure a trained network on a text."""

from typing import Annotated

import typer

from ltc_textgen.commands.common import (
    DEFAULT_RUN,
    Device,
    Json,
    RunDirectory,
    Threads,
    describe,
    given,
    notify,
    prepare_torch,
    print_json,
    progress_bar,
)
from ltc_textgen.config import DataConfig
from ltc_textgen.errors import UsageError

EXAMPLES = """Examples:

`ltc eval runs/book --data other-book.txt`

`ltc eval runs/book --data book.txt --split valid --window 64 --json`

`ltc eval runs/default --data wikitext-2 --split test`
"""


def evaluate(
    run_dir: RunDirectory = DEFAULT_RUN,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text to measure: as in `ltc train`; the run's own corpus if not given."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="all, or the part that training held out (valid), learned from (train) or the corpus keeps (test).",
        ),
    ] = "",
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="Forget everything every so many tokens; never if not given.")
    ] = None,
    encoding_errors: Annotated[str | None, describe(DataConfig, "encoding_errors")] = None,
    text_column: Annotated[str | None, describe(DataConfig, "text_column")] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a trained network on a text: nats per token, perplexity, word perplexity, bits per byte.

    A file is read whole unless --split says otherwise; the corpus of the run is measured on its validation part.
    """
    part = split or ("all" if data else "valid")
    if part not in ("all", "train", "valid", "test"):
        raise UsageError(f"--split {split}: expected all, train, valid or test")
    from ltc_textgen.artifacts import load_run
    from ltc_textgen.commands.texts import documents
    from ltc_textgen.evaluation import evaluate as score

    run = load_run(run_dir, prepare_torch(device, threads))
    settings = (run.config.data if run.config else DataConfig()).model_dump()
    changes = given(data=data, encoding_errors=encoding_errors, text_column=text_column)
    config = DataConfig.parse({**settings, **({"valid": None} if data else {}), **changes})
    with progress_bar("reading") as advance:
        scores = score(run.model, run.tokenizer, documents(config, part, notify), window=window, progress=advance)
    if as_json:
        print_json(scores.to_dict())
        return
    print(f"nats per token    {scores.nll_per_token:.4f}   ({scores.tokens:,} tokens)")
    print(f"perplexity        {scores.perplexity:.2f}")
    print(f"word perplexity   {scores.word_perplexity:.2f}   ({scores.words:,} words and line ends)")
    print(f"bits per byte     {scores.bits_per_byte:.4f}   ({scores.bytes:,} bytes)")
    lossy = "" if scores.lossless else "   (lossy tokenizer: compare with its like only)"
    print(f"unknown tokens    {scores.unknown_rate:.2%}{lossy}")
    print(f"state             {'carried throughout' if window is None else f'put to rest every {window} tokens'}")
