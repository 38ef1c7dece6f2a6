"""Text on stdout and stderr, whatever they are: any encoding, a terminal, a closed stream, a full disk.

stdout carries results, stderr messages. Characters that a stream cannot encode are written as escapes, and control
characters are escaped where a terminal would obey them. A result that cannot be written is an error; a message that
cannot be written is dropped, since it must not end the work that it reports on.
"""

import contextlib
import json
import math
import os
import re
import shutil
import sys
import textwrap
from typing import Any, Protocol, runtime_checkable

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but line feed and tab, separators and overrides of direction, and lone surrogates."""


@runtime_checkable
class Stream(Protocol):
    """A text stream that can be written to."""

    def write(self, text: str, /) -> Any: ...

    def flush(self) -> Any: ...


def printable(text: str) -> str:
    r"""Escape the characters that a terminal would obey instead of showing them.

    >>> printable("a\x1b[31mb\tc")
    'a\\x1b[31mb\tc'
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(message: object) -> str:
    """A message, or that of an error, as one printable line; the name of the error's type if it has no message."""
    return printable(" ".join(str(message).split())) or type(message).__name__


def write(text: str, stream: Stream | None = None) -> None:
    """Write text to a stream at once, escaping what it cannot encode and, on a terminal, control characters.

    Args:
        text: Any text.
        stream: stdout if None; nothing is written where the process has none.

    Raises:
        OSError: If the stream cannot be written to; `filename` says which of the standard streams it was.
    """
    target: Any = sys.stdout if stream is None else stream
    if target is None:
        return
    if is_terminal(target):
        text = printable(text)
    encoding = getattr(target, "encoding", None) or "utf-8"
    try:
        target.write(text.encode(encoding, "backslashreplace").decode(encoding))
        target.flush()
    except OSError as error:
        if target is sys.stdout and not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "stdout") from None
        raise


def print_line(text: str = "", stream: Stream | None = None) -> None:
    """Write text and a line end. Arguments and errors as in `write`."""
    write(f"{text}\n", stream)


def print_filled(text: str, indent: int) -> None:
    """Write text to stdout in lines as wide as the terminal, or of 80 columns; all but the first are indented."""
    width = shutil.get_terminal_size((80, 24)).columns
    print_line(textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False))


def print_json(document: Any, stream: Stream | None = None) -> None:
    r"""Write a document as one line of JSON: with \u escapes where the stream is not UTF-8, null for NaN and infinity.

    Arguments and errors as in `write`.
    """
    target: Any = sys.stdout if stream is None else stream
    unicode = (getattr(target, "encoding", None) or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")
    text = json.dumps(finite(document), ensure_ascii=not unicode, allow_nan=False)
    # Outside ASCII, controls and surrogates can only stand inside strings, where an escape means the same.
    print_line(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text), stream)


def print_message(text: str) -> None:
    """Write a message and a line end to stderr, control characters escaped; dropped if stderr cannot be written to."""
    try:
        if sys.stderr is not None:
            print_line(printable(text), sys.stderr)
    except (OSError, ValueError):
        discard(sys.stderr)


def is_terminal(stream: Any) -> bool:
    """True if a stream is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def finite(document: Any) -> Any:
    """A document with None in place of numbers that JSON does not have."""
    if isinstance(document, dict):
        return {key: finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def discard(stream: Any) -> None:
    """Send what is still written to a broken standard stream nowhere, so that its flush at exit does not fail."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def prepare_streams() -> None:
    """Make the standard streams of a command safe: open, and escaping what they cannot encode.

    A descriptor that the parent closed would be given to the next file that is opened, and messages would be written
    into that file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
