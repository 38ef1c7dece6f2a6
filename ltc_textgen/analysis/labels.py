"""Properties of a text, token by token, that a neuron may follow.

A token has the property of its last character, since a state after a token has seen all of it. Labels are arrays over
tokens: 1 and 0, or numbers; NaN where a property does not apply.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ltc_textgen.errors import UsageError
from ltc_textgen.shapes import Float, Int

QUOTES = {"\u201c": "\u201d", "\u00ab": "\u00bb", "\u201e": "\u201c"}
BRACKETS = {"(": ")", "[": "]", "{": "}"}
LINE_START = 5
"""Characters of a line that are its start."""
RARE, FREQUENT = 1 / 3, 2 / 3
"""Quantiles of word frequency, over the characters of the text, that bound rare and frequent words."""

Character = Callable[[str], Sequence[float]]


def labels(pieces: Sequence[str], regex: str | None = None) -> dict[str, Float[np.ndarray, " T"]]:
    r"""Every property of a text.

    | name            | 1 where                                                                |
    |-----------------|------------------------------------------------------------------------|
    | `quotes`        | a quotation is open; straight double quotes open and close in turn     |
    | `brackets`      | a bracket is open                                                      |
    | `capitals`      | a letter is a capital; NaN where there is no letter                     |
    | `digits`        | a character is a digit                                                 |
    | `spaces`        | a character is blank                                                   |
    | `vowels`        | a letter is a, e, i, o or u; NaN where there is no letter               |
    | `line_start`    | the character is among the first `LINE_START` of its line              |
    | `line_position` | (a number) characters since the line began                             |
    | `word_position` | (a number) characters since the word began; NaN outside words          |
    | `speaker`       | the line so far is a speaker's name, as in plays (`ROMEO:`)            |
    | `rare_words`    | the word is in the rarest third of the text; NaN outside words         |
    | `frequent_words`| the word is in the most frequent third; NaN outside words              |
    | `regex`         | the last character of the token lies in a match of `regex`             |

    Args:
        pieces: What each token writes, as in `Trace.pieces`.
        regex: A regular expression of Python.

    Raises:
        UsageError: If the expression is invalid.

    Example:
        >>> labels(list('He: "Go." So'))["quotes"].astype(int).tolist()
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    """
    text = "".join(pieces)
    found = {name: np.asarray(function(text), dtype=np.float64) for name, function in _CHARACTERS.items()}
    counts = np.asarray(_word_counts(text), dtype=np.float64)
    inside = counts[np.isfinite(counts)]
    low, high = np.quantile(inside, (RARE, FREQUENT)) if len(inside) else (0.0, 0.0)
    found["rare_words"] = np.where(np.isnan(counts), np.nan, counts <= low)
    found["frequent_words"] = np.where(np.isnan(counts), np.nan, counts >= high)
    if regex is not None:
        found["regex"] = np.asarray(_matched(text, regex), dtype=np.float64)
    ends = last_characters(pieces)
    return {name: _at(values, ends) for name, values in found.items()}


def word_frequency(pieces: Sequence[str]) -> Float[np.ndarray, " T"]:
    """How often the word that contains each token occurs in the text, (T,); NaN outside words."""
    return _at(np.asarray(_word_counts("".join(pieces)), dtype=np.float64), last_characters(pieces))


def last_characters(pieces: Sequence[str]) -> Int[np.ndarray, " T"]:
    """Position of the last character of each token in the text; that of the token before where it writes nothing."""
    return np.cumsum([len(piece) for piece in pieces], dtype=np.int64) - 1


def _at(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    if not len(values):
        return np.full(len(ends), np.nan)
    return np.where(ends < 0, np.nan, values[ends.clip(min=0)])


def _open_quotes(text: str) -> list[float]:
    """A paragraph ends every quotation, so that one missing mark does not invert the rest of a text."""
    found, closing = [], ""
    for here, after in zip(text, text[1:] + " ", strict=False):
        if closing and here == closing:
            closing = ""
        elif not closing and here in QUOTES:
            closing = QUOTES[here]
        elif here == '"':
            closing = "" if closing == '"' else '"'
        elif here == "\n" == after:
            closing = ""
        found.append(float(bool(closing)))
    return found


def _open_brackets(text: str) -> list[float]:
    found, stack = [], list[str]()
    for here, after in zip(text, text[1:] + " ", strict=False):
        if here in BRACKETS:
            stack.append(BRACKETS[here])
        elif here in stack:
            del stack[len(stack) - 1 - stack[::-1].index(here) :]
        elif here == "\n" == after:
            stack.clear()
        found.append(float(bool(stack)))
    return found


def _line_position(text: str) -> list[float]:
    found, position = [], 0
    for here in text:
        found.append(float(position))
        position = 0 if here == "\n" else position + 1
    return found


def _word_position(text: str) -> list[float]:
    found = [float("nan")] * len(text)
    for word in re.finditer(r"\w+", text):
        for position in range(word.end() - word.start()):
            found[word.start() + position] = float(position)
    return found


def _speakers(text: str) -> list[float]:
    found = [0.0] * len(text)
    for name in re.finditer(r"^[A-Z][A-Za-z .'-]{0,40}:$", text, re.MULTILINE):
        found[name.start() : name.end()] = [1.0] * (name.end() - name.start())
    return found


def _word_counts(text: str) -> list[float]:
    words = list(re.finditer(r"\w+", text))
    counts = Counter(word[0].lower() for word in words)
    found = [float("nan")] * len(text)
    for word in words:
        found[word.start() : word.end()] = [float(counts[word[0].lower()])] * (word.end() - word.start())
    return found


def _matched(text: str, regex: str) -> list[float]:
    try:
        matches = list(re.finditer(regex, text))
    except re.error as error:
        raise UsageError(f"regex {regex!r}: {error}") from None
    found = [0.0] * len(text)
    for match in matches:
        found[match.start() : match.end()] = [1.0] * (match.end() - match.start())
    return found


_CHARACTERS: dict[str, Character] = {
    "quotes": _open_quotes,
    "brackets": _open_brackets,
    "capitals": lambda text: [float(c.isupper()) if c.isalpha() else float("nan") for c in text],
    "digits": lambda text: [float(c.isdigit()) for c in text],
    "spaces": lambda text: [float(c.isspace()) for c in text],
    "vowels": lambda text: [float(c.lower() in "aeiou") if c.isalpha() else float("nan") for c in text],
    "line_start": lambda text: [float(position < LINE_START) for position in _line_position(text)],
    "line_position": _line_position,
    "word_position": _word_position,
    "speaker": _speakers,
}

NAMES = (*_CHARACTERS, "rare_words", "frequent_words")
"""Every label but `regex`, which needs an expression."""
