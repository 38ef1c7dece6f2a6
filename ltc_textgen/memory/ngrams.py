"""Counts of the token sequences of a text, and the distribution of the next token that they give.

The distribution is Kneser-Ney's with three discounts. With c(h w) the count of token w after context h, the longest
suffix of the text read so far that was seen before, and h' = h without its oldest token,

    p(w | h) = (c(h w) - D(c(h w))) / c(h) + gamma(h) p(w | h'),      gamma(h) = sum_w D(c(h w)) / c(h)

down to the empty context, which is interpolated with the uniform distribution. D takes one value each for counts of 1,
2, and 3 or more, and is estimated per order from the counts of counts.

Counts are made token by token with update exclusion: a token is counted in the longest context, and in a shorter one
only if it is new in all longer ones. The counts of shorter contexts are then continuation counts (how many different
tokens precede h w), as Kneser-Ney wants them, and reading on after training gives the same memory as training on both
texts at once.

Sources: Kneser and Ney 1995, ICASSP; Chen and Goodman 1999, Computer Speech and Language 13, Eq. 17; Moffat 1990, IEEE
Transactions on Communications 38 (update exclusion in PPM); Manku and Motwani 2002, VLDB (lossy counting). Kernel:
csrc/memory.cpp.
"""

import ctypes
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.library import LIBRARY, WHY_NOT

LONGEST = 15
"""Largest order that the kernel supports."""

BYTES_PER_ENTRY = 48
"""Upper bound of the memory in use for each entry, context tables included, while tables grow."""

FORMAT = "1"
_TALLIES = (LONGEST + 1, 5)
_NO_EOS = -1

Ids = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]


class NgramMemory:
    """Counts of n-grams, updated token by token.

    Args:
        vocab_size: V, number of token ids.
        order: Tokens of the longest context, 0 to 15. About 8 for characters and bytes, 5 for subword tokens.
        eos_token_id: Token that ends a document: contexts do not reach back over it. None: there are no documents.
        max_entries: Number of (context, token) pairs above which rare contexts are removed while counting (lossy
            counting). A pair takes 12 bytes in a file, a context as many, and both at most `BYTES_PER_ENTRY` in memory.

    Raises:
        UsageError: If a value is out of range, or the package was built without the compiled kernels.
        MemoryError: If there is no room for empty tables.

    Example:
        >>> memory = NgramMemory(vocab_size=3, order=2)
        >>> memory.learn(np.array([0, 1, 2, 0, 1, 2, 0, 1]))
        >>> int(memory.probabilities().argmax())
        2
    """

    def __init__(
        self, vocab_size: int, order: int = 8, eos_token_id: int | None = None, max_entries: int = 1 << 24
    ) -> None:
        if LIBRARY is None:
            raise UsageError(f"the n-gram memory needs the compiled kernels, and there are none here: {WHY_NOT}")
        if not 0 <= order <= LONGEST:
            raise UsageError(f"order: expected 0 to {LONGEST}, got {order}")
        if not 1 <= vocab_size < 2**31:
            raise UsageError(f"vocab_size: expected 1 to {2**31 - 1}, got {vocab_size}")
        if not 0 <= max_entries < 2**32 - 2:
            raise UsageError(f"max_entries: expected 0 to {2**32 - 3}, got {max_entries}")
        self.vocab_size, self.order, self.eos_token_id, self.max_entries = vocab_size, order, eos_token_id, max_entries
        self._library = _declared(LIBRARY)
        end = _NO_EOS if eos_token_id is None else eos_token_id
        self._handle: int | None = self._library.ltc_memory_new(order, vocab_size, end, max_entries)
        if not self._handle:
            raise MemoryError("no memory for the tables of an n-gram memory")

    def learn(self, tokens: npt.ArrayLike) -> None:
        """Count tokens, which continue what was read before.

        Args:
            tokens: Ids, (T,).

        Raises:
            UsageError: If an id is not in 0..V-1.
        """
        self._read(tokens, learn=True)

    def read(self, tokens: npt.ArrayLike) -> None:
        """Advance the context by tokens without counting them. Arguments and errors as in `learn`."""
        self._read(tokens, learn=False)

    def reset(self) -> None:
        """Reset the context, not the counts: a new text begins."""
        self._library.ltc_memory_reset(self._handle)

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Distribution of the next token, (V,); it sums to 1 and is nowhere 0."""
        result = np.empty(self.vocab_size, np.float64)
        self._library.ltc_memory_predict(self._handle, address(result))
        return result

    @property
    def entries(self) -> int:
        """Number of (context, token) pairs that are counted."""
        return self._sizes()[0]

    @property
    def contexts(self) -> int:
        """Number of different contexts."""
        return self._sizes()[1]

    @property
    def file_size(self) -> int:
        """Bytes of the file that `save` would write, its header left out."""
        return 12 * (self.entries + self.contexts) + 8 * _TALLIES[0] * _TALLIES[1]

    def prune(self, max_bytes: int) -> None:
        """Remove the rarest contexts until `file_size` is at most `max_bytes`, or only single tokens are left."""
        while self.file_size > max_bytes and self.contexts > 1:
            before = self.contexts
            if self._library.ltc_memory_prune(self._handle, self.entries * 3 // 4):
                raise MemoryError("no memory for smaller tables of an n-gram memory")
            if self.contexts == before:
                return

    def tables(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
        """The counts as arrays and their settings, for a file; `from_tables` reads both."""
        entries, contexts = self._sizes()
        keys, heads = np.empty(contexts, np.uint64), np.empty(contexts, np.uint32)
        table, tallies = np.empty((entries, 3), np.uint32), np.empty(_TALLIES, np.int64)
        self._library.ltc_memory_save(self._handle, address(keys), address(heads), address(table), address(tallies))
        end = _NO_EOS if self.eos_token_id is None else self.eos_token_id
        settings = {"vocab_size": self.vocab_size, "order": self.order, "eos_token_id": end}
        header = {"format": FORMAT, "max_entries": str(self.max_entries), **{k: str(v) for k, v in settings.items()}}
        return {"keys": keys, "heads": heads, "entries": table, "tallies": tallies}, header

    @classmethod
    def from_tables(cls, arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, str]) -> "NgramMemory":
        """The memory of what `tables` gave, at the beginning of a text.

        Raises:
            ValueError: If the arrays cannot be the tables of a memory, or the header lacks a setting.
        """
        if header.get("format") != FORMAT:
            raise ValueError(f"format {header.get('format')} of another version; train again")
        try:
            end, vocab_size = int(header["eos_token_id"]), int(header["vocab_size"])
            memory = cls(vocab_size, int(header["order"]), None if end < 0 else end, int(header["max_entries"]))
            keys, heads, table, tallies = (checked_array(arrays[name], *shape) for name, shape in _SHAPES.items())
        except KeyError as error:
            raise ValueError(f"lacks {error}") from None
        except UsageError as error:
            raise ValueError(str(error)) from None
        sizes = len(keys), address(keys), address(heads), len(table), address(table), address(tallies)
        if len(keys) != len(heads) or memory._library.ltc_memory_load(memory._handle, *sizes) != 0:
            raise ValueError("its tables contradict each other")
        return memory

    def close(self) -> None:
        """Free the tables; the memory must not be used any more."""
        if self._handle:
            self._library.ltc_memory_free(self._handle)
            self._handle = None

    def __enter__(self) -> "NgramMemory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def _read(self, tokens: npt.ArrayLike, learn: bool) -> None:
        ids = self.checked(tokens)
        if self._library.ltc_memory_read(self._handle, address(ids), len(ids), int(learn)):
            raise MemoryError("no memory for more n-grams")

    def checked(self, tokens: npt.ArrayLike) -> Ids:
        """Token ids as contiguous uint32.

        Raises:
            UsageError: If they are not (T,) integers in 0..V-1.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UsageError(f"tokens: expected integers (T,), got {ids.dtype} {ids.shape}")
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size):
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise UsageError(f"tokens: expected ids in 0..{self.vocab_size - 1}, got {bad}")
        return np.ascontiguousarray(ids, np.uint32)

    def _sizes(self) -> tuple[int, int]:
        sizes = np.empty(2, np.int64)
        self._library.ltc_memory_sizes(self._handle, address(sizes))
        return int(sizes[0]), int(sizes[1])


_SHAPES: dict[str, tuple[Any, tuple[int | None, ...]]] = {
    "keys": (np.uint64, (None,)),
    "heads": (np.uint32, (None,)),
    "entries": (np.uint32, (None, 3)),
    "tallies": (np.int64, _TALLIES),
}


def checked_array(array: npt.NDArray[Any], dtype: Any, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """An array of a file as the kernel takes it; None in `shape` is any length.

    Raises:
        ValueError: If its type or shape is another.
    """
    fits = array.ndim == len(shape) and all(n in (None, got) for n, got in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        raise ValueError(f"expected {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)


def address(array: npt.NDArray[Any]) -> int:
    """The address of an array's data."""
    return array.ctypes.data


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with argument types declared: ctypes would cut addresses to 32 bits otherwise."""
    p, i, n = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    for name, result, arguments in (
        ("new", p, (i, n, n, n)),
        ("free", None, (p,)),
        ("read", i, (p, p, n, i)),
        ("reset", None, (p,)),
        ("predict", None, (p, p)),
        ("prune", i, (p, n)),
        ("sizes", None, (p, p)),
        ("save", None, (p, p, p, p, p)),
        ("load", i, (p, n, p, p, n, p, p)),
    ):
        function = getattr(library, f"ltc_memory_{name}")
        function.restype, function.argtypes = result, arguments
    return library
