"""`ltc generate --interactive`: one loaded network, prompt after prompt, from a terminal or a pipe."""

import dataclasses
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from ltc_textgen.cli.generate import Texts, decoded, load_state, unescaped
from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import LTCError, UsageError
from ltc_textgen.io.output import is_terminal, one_line, print_message
from ltc_textgen.settings import did_you_mean

HELP = """A line is a prompt; an empty line generates a text without one; a line that begins with : is a command.
  :NAME           show a sampling option (:temperature)
  :NAME VALUE     set it (:temperature 0.7, :seed 3, :stop '\\n'); :NAME none unsets it
  :state FILE     let every prompt follow the text of a file that --save-state wrote
  :reset          return to the options and the state of the command line
  :help, :quit    this list; the end
  ::TEXT          a prompt that begins with a colon"""


class Conversation:
    """Prompts and commands, one a line.

    Args:
        texts: Network, sampling options and state to begin with.
    """

    def __init__(self, texts: Texts) -> None:
        self._initial = self._texts = texts
        self.ended = False

    def take(self, line: str) -> None:
        """Handle one line.

        Raises:
            LTCError: If the command is invalid, or the prompt cannot be continued.
        """
        if line.startswith("::"):
            self._texts.show(line[1:])
        elif line.startswith(":"):
            name, _, value = line[1:].strip().partition(" ")
            self._command(name.replace("-", "_"), value.strip())
        else:
            self._texts.show(line)

    def _command(self, name: str, value: str) -> None:
        if name == "help":
            print_message(HELP)
        elif name in ("quit", "q", "exit"):
            self.ended = True
        elif name == "reset":
            self._texts = self._initial
        elif name == "state":
            if not value:
                raise UsageError(":state needs a file")
            state = load_state(self._texts.run, Path(_word(value)))
            self._texts = dataclasses.replace(self._texts, state=state)
        elif name not in SamplingConfig.model_fields:
            known = [*SamplingConfig.model_fields, "state", "reset", "help", "quit"]
            raise UsageError(f"unknown command ':{name}'{did_you_mean(name, known)}")
        elif not value:
            print_message(f"{name} {getattr(self._texts.sampling, name)}")
        else:
            self._set(name, value)

    def _set(self, name: str, value: str) -> None:
        values = self._texts.sampling.model_dump()
        word = _word(value)
        if word == "none":
            values.pop(name)
        else:
            values[name] = [unescaped(word)] if name == "stop" else word
        self._texts = dataclasses.replace(self._texts, sampling=SamplingConfig.parse(values, ":" + name))


def converse(texts: Texts) -> None:
    """Handle the lines of stdin until its end; the exit code is 2 if a line of a pipe was rejected.

    An error is printed; the conversation continues. On a terminal, Ctrl-C ends the text that is being generated.
    """
    conversation, failed = Conversation(texts), False
    terminal = is_terminal(sys.stdin)
    if terminal:
        print_message("type a prompt, or :help; Ctrl-D ends")
    for line in _lines(terminal):
        try:
            conversation.take(decoded(line, "prompt"))
        except LTCError as error:
            print_message(f"ltc: {one_line(error)}")
            failed = True
        except KeyboardInterrupt:
            if not terminal:
                raise
            print_message("")
        if conversation.ended:
            break
    if failed and not terminal:
        raise typer.Exit(2)


def _lines(terminal: bool) -> Iterator[bytes]:
    if not (terminal and is_terminal(sys.stdout)):
        yield from sys.stdin.buffer
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its line editing and history)
    while True:
        try:
            yield input("> ").encode(errors="surrogateescape")
        except EOFError:
            return


def _word(value: str) -> str:
    """A value, quoted or not."""
    try:
        words = shlex.split(value) if value[:1] in "'\"" else [value]
    except ValueError as error:
        raise UsageError(f"{value}: {error}") from None
    return words[0] if len(words) == 1 else value
