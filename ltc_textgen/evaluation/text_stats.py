"""Statistics of generated text: variety, repetition, loops, and the distribution of its words.

| measure | is | reads |
|---|---|---|
| distinct_1 ... distinct_4 | different n-grams of words / n-grams of words | low: the same phrases again and again |
| repeated_4grams | fraction of the 4-grams of words that have occurred before | high: whole phrases again |
| longest_repeat | characters of the longest passage that occurs twice (the two may overlap) | long: copies itself |
| looping | fraction of the characters in loops: a unit at least LOOP times in a row | above the corpus': stuck |
| zipf | -slope of ln(frequency) over ln(rank) of words that occur at least twice | near 1 in natural text |

Words are runs of letters and digits, in lower case, and single other marks. All of them depend on the length of the
text, so they are compared with passages of the same length of the corpus (`like_corpus`).

Source: distinct-n is that of Li et al. 2016, arXiv:1510.03055.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LOOP = 4
"""A unit that comes so many times in a row is a loop: "no, no, no" is none."""

LONGEST_UNIT = 1000
"""Characters of the longest unit of a loop that is looked for."""

SHORTEST_LOOP = 8
"""Characters that a loop has at least: an ellipsis and a short rule are none."""

PASSAGES = 20
"""Most passages of the corpus that a text is compared with."""


@dataclass(frozen=True)
class TextQuality:
    """Measures of a text (see the head of this module); None where it is too short for one."""

    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    distinct_4: float | None
    repeated_4grams: float | None
    longest_repeat: int | float
    looping: float
    zipf: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of JSON values."""
        return asdict(self)


def measure_text(text: str) -> TextQuality:
    """The measures of a text."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    grams = [list(zip(*(words[i:] for i in range(n)), strict=False)) for n in (1, 2, 3, 4)]
    one, two, three, four = (len(set(found)) / len(found) if found else None for found in grams)
    again = None if four is None else 1.0 - four
    return TextQuality(one, two, three, four, again, longest_repeat(text), looping(text), zipf_exponent(words))


def longest_repeat(text: str) -> int:
    """Characters of the longest passage that occurs at least twice.

    Passages of length n get numbers, equal for equal ones: those of length m + n from the numbers of their two parts.
    """
    numbers = _renumber(np.array([ord(c) for c in text], np.int64))
    doubled = [numbers]  # of length 1, 2, 4, ...
    while len(doubled[-1]) > 1 << (len(doubled) - 1):
        half = 1 << (len(doubled) - 1)
        doubled.append(_join(doubled[-1], doubled[-1], half))
    length, best = 0, np.zeros(len(text) + 1, np.int64)
    for power in reversed(range(len(doubled))):
        longer = _join(best, doubled[power], length)
        if len(longer) > len(np.unique(longer)):
            length, best = length + (1 << power), longer
    return length


def _join(first: np.ndarray, second: np.ndarray, length: int) -> np.ndarray:
    """Numbers of the passages that begin with one of `first`, of this length, and continue with one of `second`."""
    after = second[length:]
    return _renumber(first[: len(after)] * (len(second) + 1) + after) if len(after) else after


def _renumber(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def looping(text: str) -> float:
    """Fraction of the characters that lie in a loop, 0 to 1."""
    letters = np.array([ord(c) for c in text], np.int64)
    inside = np.zeros(len(text), bool)
    for unit in range(1, min(LONGEST_UNIT, len(text) // LOOP) + 1):
        same = np.concatenate([[False], letters[unit:] == letters[:-unit], [False]])
        ends = np.flatnonzero(same[1:] != same[:-1]).reshape(-1, 2)
        for start, end in ends[ends[:, 1] - ends[:, 0] >= max((LOOP - 1) * unit, SHORTEST_LOOP - unit)]:
            inside[start : end + unit] = True
    return float(inside.mean()) if len(text) else 0.0


def zipf_exponent(words: Iterable[str]) -> float | None:
    """The exponent of Zipf's law; None if fewer than three words occur twice."""
    counts = np.array(sorted((n for n in Counter(words).values() if n > 1), reverse=True), np.float64)
    if len(counts) < 3:
        return None
    return -float(np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0])


def like_corpus(documents: Iterable[str], length: int) -> TextQuality | None:
    """The mean measures of passages of so many characters of the corpus, one after the other; None without any.

    A measure that some of the passages are too short for is the mean of the others.
    """
    passages: list[str] = []
    for text in documents if length else ():
        passages += [text[at : at + length] for at in range(0, len(text) - length + 1, length)][
            : PASSAGES - len(passages)
        ]
        if len(passages) >= PASSAGES:
            break
    if not passages:
        return None
    every = [measure_text(passage).to_dict() for passage in passages]
    means: dict[str, Any] = {}
    for name in every[0]:
        values = [found[name] for found in every if found[name] is not None]
        means[name] = float(np.mean(values)) if values else None
    return TextQuality(**means)
