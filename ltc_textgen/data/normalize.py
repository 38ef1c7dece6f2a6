r"""One form for every input text: files, rows of data sets, prompts, and texts given in Python.

    U+FEFF (byte order mark, anywhere: joined files have them in the middle)    removed
    CR LF, CR                                                                   LF
    NUL                                                                         rejected with its place; or replaced

A model and its tokenizer see only this form, in training as in generation. The function uses the standard library alone
and has a copy in the programs of an exported model (`export/host`); a test keeps them equal.
"""

from collections import Counter
from collections.abc import Callable

from ltc_textgen.errors import UsageError

BYTE_ORDER_MARK = "\ufeff"
REPLACEMENT = "\ufffd"


def normalize(text: str, where: str = "text") -> str:
    r"""A text in the form that models are trained on; see the module.

    Args:
        text: Any text.
        where: What to name in an error: prompt, a file.

    Raises:
        UsageError: If it holds a NUL character, or half of a surrogate pair, which is no character.

    >>> normalize("\ufeffone\r\ntwo\rthree")
    'one\ntwo\nthree'
    """
    if (at := text.find("\0")) >= 0:
        raise UsageError(f"{where}: NUL at character {at}: this is no text; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: character {error.start} is half of a surrogate pair, not a character") from None
    return normalize_lines(text)


def normalize_lines(text: str) -> str:
    """Without byte order marks, and with LF as the only line end; nothing is rejected."""
    if BYTE_ORDER_MARK in text:
        text = text.replace(BYTE_ORDER_MARK, "")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


class StreamNormalizer:
    """`normalize` for a text that arrives in chunks, with counts of what was changed.

    Args:
        on_nul: What a NUL becomes; called with its place in characters where it is to be rejected (and raises).
        counts: Where changes are counted: marks, carriage_returns, nul.
    """

    def __init__(self, on_nul: str | Callable[[int], Exception], counts: Counter[str]) -> None:
        self._on_nul, self._counts = on_nul, counts
        self._carriage = ""
        self._characters = 0

    def __call__(self, chunk: str, final: bool) -> str:
        """The normalised text of one more chunk; a CR at its end waits for the next."""
        if (at := chunk.find("\0")) >= 0:
            if not isinstance(self._on_nul, str):
                raise self._on_nul(self._characters + at)
            self._counts["nul"] += chunk.count("\0")
            chunk = chunk.replace("\0", self._on_nul)
        self._characters += len(chunk)
        text = self._carriage + chunk
        self._carriage = "\r" if text.endswith("\r") and not final else ""
        text = text.removesuffix("\r") if self._carriage else text
        if BYTE_ORDER_MARK in text:
            self._counts["marks"] += text.count(BYTE_ORDER_MARK)
        if "\r" in text:
            self._counts["carriage_returns"] += text.count("\r") - text.count("\r\n")
        return normalize_lines(text)


def describe_changes(counts: Counter[str]) -> list[str]:
    """What was changed or left out in reading, in words: an item for each kind that is no mere line end."""
    wording = {
        "replaced": "{n} became U+FFFD (bytes that are not UTF-8)",
        "ignored": "{n} left out (bytes that are not UTF-8)",
        "nul": "{n} NUL replaced or left out",
        "surrogates": "{n} halves of surrogate pairs replaced or left out",
        "nulls": "{n} rows without text (null) skipped",
        "carriage_returns": "{n} line ends CR became LF",
    }
    return [text.format(n=f"{counts[key]:,}") for key, text in wording.items() if counts[key]]
