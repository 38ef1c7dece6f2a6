"""How much of a text occurs verbatim in another: the longest common run, and the fraction in long ones.

Runs are found by polynomial hashes of all windows of a length, modulo 2**64 (Karp and Rabin 1987, IBM Journal of
Research and Development 31); a window of length 2 n is made of two of length n, so that numpy does the work. Two
different windows have equal hashes with a probability of about 1e-19.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

RUN = 50
"""Characters of a run that is counted as copied. Phrases that two texts have in common are rarely so long."""

_BASE = 0x9E3779B97F4A7C15
_Codes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Copying:
    """What a text has in common with a source.

    Args:
        longest: Characters of its longest run that stands in the source.
        fraction: Of its characters, those in runs of `RUN` or more that stand in the source, 0 to 1.
    """

    longest: int
    fraction: float

    def to_dict(self) -> dict[str, int | float]:
        """The fields as a dictionary of JSON values."""
        return asdict(self)


def measure_copying(text: str, source: Iterable[str]) -> Copying:
    """Compare a text with the documents of a source; a run lies within one document.

    Args:
        text: Text to measure; time grows with its length times the logarithm of its longest run.
        source: Documents, each of which is looked through once for each length tried.
    """
    own, documents = _codes(text), [_codes(document) for document in source]
    covered = np.zeros(len(own) + 1, np.int64)
    found = np.flatnonzero(_stands_in(own, documents, RUN))
    np.add.at(covered, found, 1)
    np.add.at(covered, found + RUN, -1)
    fraction = float((covered.cumsum()[:-1] > 0).mean()) if len(own) else 0.0
    return Copying(_longest(own, documents), fraction)


def _longest(own: _Codes, documents: list[_Codes]) -> int:
    """Length of the longest window of `own` that stands in a document: every shorter length has one too."""
    low, high = 0, 1
    while high <= len(own) and _stands_in(own, documents, high).any():
        low, high = high, 2 * high
    high = min(high, len(own) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _stands_in(own, documents, middle).any() else (low, middle)
    return low


def _codes(text: str) -> _Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64) + np.uint64(1)


def _stands_in(own: _Codes, documents: list[_Codes], length: int) -> npt.NDArray[np.bool_]:
    """For each window of `own`, whether a document has it."""
    hashes = _windows(own, length)
    known, inverse = np.unique(hashes, return_inverse=True)
    seen = np.zeros(len(known), np.bool_)
    for document in documents if len(known) else []:
        theirs = _windows(document, length)
        places = np.searchsorted(known, theirs)
        places[places == len(known)] = 0
        seen[places[known[places] == theirs]] = True
    return seen[inverse]


def _windows(codes: _Codes, length: int) -> _Codes:
    """Hashes of all windows of a length, (len(codes) - length + 1,)."""
    count = len(codes) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    hashes, power, done, result, span = codes, _BASE, 1, None, 0
    while True:  # binary digits of the length: `hashes` are of windows of 2**k, `result` of those added up so far
        if length & done:
            if result is None:
                result, span = hashes[:count], done
            else:
                result, span = result * np.uint64(power) + hashes[span : span + count], span + done
        if done * 2 > length:
            return result if result is not None else hashes[:count]
        hashes = hashes[:-done] * np.uint64(power) + hashes[done:]
        power, done = power * power % 2**64, done * 2
