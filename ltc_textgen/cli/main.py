"""The command `ltc`: its subcommands, and how errors and signals become exit codes.

Each subcommand is a module of this package that imports torch only when it runs, which keeps `ltc --help` fast.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 data cannot be had, 4 artifact rejected, 130, 143 or 129 stopped by a
signal after saving. stdout carries the result, stderr everything else.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ltc_textgen.cli import bench, doctor, evaluate, export, generate, inspect, process_env, train
from ltc_textgen.errors import LTCError
from ltc_textgen.io import output


class _StoppedError(LTCError):
    """Ctrl-C."""

    exit_code = 130


class _ClosedPipeError(Exception):
    """The reader of stdout closed it, as in `ltc generate ... | head`."""


class _Commands(TyperGroup):
    """Group that passes Ctrl-C and a closed pipe on, for which typer would choose exit codes of its own."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _as_errors():  # --help and --version are printed here
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _as_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def _as_errors() -> Iterator[None]:
    try:
        yield
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

        output.print_line(f"ltc-textgen {version('ltc-textgen')}")
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
    """Run one command and return its exit code.

    An error is printed as one line on stderr; its traceback only with --debug.
    """
    try:
        code = int(app(arguments, prog_name="ltc", standalone_mode=False) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except (_ClosedPipeError, BrokenPipeError):
        output.discard(sys.stdout)
        return 0
    except LTCError as error:
        return _fail(str(error), error.exit_code, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1, error)
    except Exception as error:
        return _other(error)


def _other(error: Any) -> int:
    if callable(getattr(error, "format_message", None)):  # a wrong option or command, from typer
        command = getattr(getattr(error, "ctx", None), "command_path", "ltc")
        return _fail(f"{error.format_message()} (see `{command} --help`)", error.exit_code)
    return _fail(f"internal error: {type(error).__name__}: {error} (run `ltc --debug ...` for the traceback)", 1, error)


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get("LTC_DEBUG"):
        import traceback

        output.print_message("".join(traceback.format_exception(error)).rstrip())
    output.print_message(f"ltc: {output.one_line(message)}")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return code
    output.discard(sys.stdout)
    return code


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command, and of train.py and run.py."""
    output.prepare_streams()
    process_env.tune()
    sys.exit(run(arguments))
