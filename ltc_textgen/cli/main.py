"""The command `ltc`: its subcommands, and how errors and signals become exit codes.

Each subcommand is a module of this package that imports torch only when it runs, which keeps `ltc --help` fast.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 data not available, 4 artifact rejected, 130, 143 or 129 stopped by a
signal after saving. stdout carries the result, stderr everything else.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info
from typer.models import CommandInfo

from ltc_textgen.cli import process_env
from ltc_textgen.errors import LTCError
from ltc_textgen.io import output


class _StoppedError(LTCError):
    """Ctrl-C."""

    exit_code = 130


class _ClosedPipeError(Exception):
    """The reader of stdout closed it, as in `ltc generate ... | head`."""


COMMANDS = {
    "train": ("train", "Train a network on text and leave a run directory from which `ltc generate` writes."),
    "generate": ("generate", "Continue a prompt with a trained network; text is printed as it is generated."),
    "eval": ("evaluate", "Measure a trained network on a text: nats per token, perplexity, bits per byte."),
    "inspect": ("inspect", "Show a run: settings, size, result, time constants of every layer, and its curves."),
    "analyse": (
        "analyse",
        "Show what the neurons of a run do on a text: time constants, what they follow, what needs them.",
    ),
    "serve": ("serve", "Serve trained networks over HTTP: the API of OpenAI, states, and a page."),
    "runs": ("runs", "List the runs below a folder: loss, steps, tokens, size, corpus, when."),
    "export": ("export", "Write a network as ONNX, with a program and a page that run it."),
    "bench": ("bench", "Time the layers of this package and their peers: LSTM, GRU, minGRU and ncps."),
    "doctor": ("doctor", "Show versions, devices, kernels, the hub and the cache, and what is missing."),
}
"""Name of each command, the module of its function, and one line on it: the list needs no module of a command."""


def _command(name: str) -> Any:
    """The command of a name; imports the module that holds its function."""
    stem, summary = COMMANDS[name]
    module = importlib.import_module(f"ltc_textgen.cli.{stem}")
    info = CommandInfo(
        name, cls=TyperCommand, callback=getattr(module, stem), epilog=module.EXAMPLES, short_help=summary
    )
    return get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)


class _Commands(TyperGroup):
    """Commands that are imported when they are used, so that `ltc --help` is fast.

    Ctrl-C and a closed pipe become errors of this module: typer would choose exit codes of its own for them.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

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
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _fail(f"{where}{error.strerror or error}", 1, error)
    except MemoryError as error:
        return _fail("out of memory: use a smaller batch, window or network", 1, error)
    except Exception as error:
        return _other(error)


def _other(error: Any) -> int:
    if callable(getattr(error, "format_message", None)):  # a wrong option or command, from typer
        command = getattr(getattr(error, "ctx", None), "command_path", "ltc")
        return _fail(f"{error.format_message()} (see `{command} --help`)", error.exit_code)
    if "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":  # of torch
        return _fail(f"out of memory: use a smaller batch, window or network ({error})", 1, error)
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
