"""`ltc bench`: how fast the layers are here, beside LSTM, GRU and ncps."""

from typing import Annotated

import typer

EXAMPLES = """Examples:

`ltc bench --quick`

`ltc bench --json`
"""


def bench(quick: Annotated[bool, typer.Option("--quick", help="Small sizes.")] = False) -> None:
    """Measure."""
