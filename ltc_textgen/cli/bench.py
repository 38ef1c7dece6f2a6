"""`ltc bench`: the speed of the layers on this machine, compared with LSTM, GRU and ncps."""

from typing import Annotated

import typer

from ltc_textgen.cli.common import Json, Threads
from ltc_textgen.io.output import print_json, print_line, print_message

EXAMPLES = """Examples:

`ltc bench`

`ltc bench --batch-size 1 --tokens 1024 --width 512 --json`

The bars of docs/results.md, sweeps and plots: `python benchmarks/speed.py --help`
"""

COLUMNS = {
    "name": "layer",
    "train_tokens_per_second": "train tokens/s",
    "forward_tokens_per_second": "forward tokens/s",
    "activation_bytes_per_token": "bytes kept/token",
    "parameters": "parameters",
}


def bench(
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 64,
    width: Annotated[int, typer.Option(min=1, help="Inputs and neurons of a layer.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Solver sub-steps per token.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each layer, in turn; medians are shown.")] = 5,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time the layers of this package and their peers: LSTM, GRU, minGRU, and ncps where it is installed."""
    from ltc_textgen import benchmarking

    print_message(f"timing layers of width {width} on {batch_size} x {tokens} tokens ...")
    speeds = benchmarking.compare_layers(batch_size, tokens, width, steps, rounds=rounds, thread_count=threads)
    rows = benchmarking.speed_rows(speeds)
    if as_json:
        print_json(rows)
        return
    renamed = [{COLUMNS[name]: value for name, value in row.items() if name in COLUMNS} for row in rows]
    print_line(benchmarking.table(renamed, list(COLUMNS.values())))
