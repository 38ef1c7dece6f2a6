"""The command `ltc`: the list of its commands, and how errors and signals become exit codes.

Each command lives in a file of `commands/` and imports torch only when it runs, so that `ltc --help` is quick.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 data cannot be had, 4 artifact refused, 130, 143 or 129 stopped by a
signal after saving. stdout carries the result, stderr everything else.
"""

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ltc_textgen.cli import bench, doctor, evaluate, export, generate, inspect, process_env, train
from ltc_textgen.errors import LTCError


class _StoppedError(LTCError):
    """Ctrl-C."""

    exit_code = 130


class _ClosedPipeError(Exception):
    """The reader of stdout has had enough, as in `ltc generate ... | head`."""


class _Commands(TyperGroup):
    """The commands, whose Ctrl-C and closed pipe come out as such: typer makes exit codes of its own of them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _StoppedError("stopped") from None
        except BrokenPipeError:
            raise _ClosedPipeError from None


app = typer.Typer(
    name="ltc",
    cls=_Commands,
    help="Train liquid time-constant networks as language models on your own text, and write text with them.",
    epilog="Start with: ltc train --data my-book.txt --time-budget 80s --out runs/book && "
    "ltc generate runs/book --prompt 'It was'",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("generate", epilog=generate.EXAMPLES)(generate.generate)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"ltc-textgen {version('ltc-textgen')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train liquid time-constant networks as language models on your own text, and write text with them."""
    if debug:
        os.environ["LTC_DEBUG"] = "1"


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; prints an error as one line, never as a traceback (but see --debug)."""
    try:
        return int(app(arguments, prog_name="ltc", standalone_mode=False) or 0)
    except _ClosedPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except LTCError as error:
        return _fail(str(error), error.exit_code, error)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", 1, error)
    except Exception as error:
        return _other(error)


def _other(error: Any) -> int:
    if callable(getattr(error, "format_message", None)):  # a wrong option or command, from typer
        command = getattr(getattr(error, "ctx", None), "command_path", "ltc")
        return _fail(f"{error.format_message()} (see `{command} --help`)", error.exit_code)
    return _fail(f"internal error: {type(error).__name__}: {error} (run `ltc --debug ...` for the traceback)", 1, error)


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get("LTC_DEBUG"):
        traceback.print_exception(error)
    print(f"ltc: {' '.join(message.split())}", file=sys.stderr)
    return code


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command, and of train.py and run.py."""
    process_env.tune()
    sys.exit(run(arguments))
