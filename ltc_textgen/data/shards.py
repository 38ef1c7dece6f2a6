"""Shards of text: what is tokenised at once, by this process or by another, and counted on the way.

    documents in pieces -> parts, each encoded on its own -> shards of some millions of characters

The cuts depend on the text and the tokenizer's kind alone, so the tokens are the same whoever makes them, and a
shard that was made once need not be made again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltc_textgen.data.files import Piece
from ltc_textgen.data.tokenizers import TextTokenizer

PART = 1 << 16
"""Characters that are encoded as one text, where a tokenizer allows a cut."""

WHOLE = 1 << 22
"""Characters from which a document is cut even for a tokenizer of which nothing is known."""

SHARD = 1 << 21
"""Characters of a shard, or a little more."""

_BLANK_AFTER_WORD = re.compile(r"(?<=\S)[ \t\n\r\u3000]")
_LAST_SPACE = 0x3000
_SPACE = np.array([chr(code).isspace() for code in range(_LAST_SPACE + 2)])


@dataclass(frozen=True)
class Shard:
    """Text to be encoded.

    Args:
        parts: Texts that are encoded each on its own, and whether a document starts with each.
        inside: The text before this shard ended in the middle of a word that the first part goes on with.
    """

    parts: list[tuple[str, bool]]
    inside: bool = False


@dataclass
class Counts:
    """What is counted of a text.

    Args:
        tokens: Token ids, separators included.
        unknown: Those of them that are the unknown token.
        words: Runs of non-blank characters plus line ends.
        bytes: Bytes of the text in UTF-8.
        characters: Up to two different characters of the text.
    """

    tokens: int = 0
    unknown: int = 0
    words: int = 0
    bytes: int = 0
    characters: str = ""

    def add(self, other: "Counts") -> None:
        """Count what another has counted."""
        self.tokens += other.tokens
        self.unknown += other.unknown
        self.words += other.words
        self.bytes += other.bytes
        self.characters = "".join(sorted({*self.characters, *other.characters})[:2])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Counts":
        """The inverse of `dataclasses.asdict`; raises TypeError or KeyError for anything else."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


def text_parts(pieces: Iterator[Piece], kind: str) -> Iterator[tuple[str, bool]]:
    """Cut documents where it does not change their tokens, into parts that are encoded each on its own.

    Characters and bytes may be cut anywhere; wordpiece and bert where blanks begin (65,536 characters without such a
    place are cut all the same); custom tokenizers get whole documents up to four million characters, and of longer
    ones so many at a time, cut where blanks begin.

    Args:
        pieces: Documents in pieces of any length.
        kind: The tokenizer's kind.

    Yields:
        Text, and whether a document starts with it.
    """
    size = WHOLE if kind == "custom" else PART
    held, starts = "", True
    waiting: list[str] = []  # joined only when there is enough: a long document comes in many pieces
    length = 0
    for text, ends in pieces:
        waiting.append(text)
        length += len(text)
        if not ends and length <= size:
            continue
        held, waiting, position = "".join(waiting), [], 0
        while len(held) - position > size:
            cut = size if kind in {"char", "byte"} else _safe_cut(held[position : position + size])
            yield held[position : position + cut], starts
            position, starts = position + cut, False
        held = held[position:]
        if ends:
            if held:
                yield held, starts
            held, starts = "", True
        waiting, length = [held], len(held)


def shards(pieces: Iterator[Piece], kind: str) -> Iterator[Shard]:
    """Gather the parts of documents in shards."""
    parts: list[tuple[str, bool]] = []
    size, inside, follows = 0, False, False
    for text, starts in text_parts(pieces, kind):
        if not parts:
            inside = follows and not starts
        parts.append((text, starts))
        size += len(text)
        if size >= SHARD:
            yield Shard(parts, inside)
            follows = not text[-1].isspace()
            parts, size = [], 0
    if parts:
        yield Shard(parts, inside)


def encode_shard(tokenizer: TextTokenizer, shard: Shard) -> tuple[np.ndarray, Counts]:
    """Token ids of a shard, a separator before each document, as uint16 or uint32; and what was counted."""
    separator = np.array([tokenizer.separator_id], dtype=token_type(tokenizer))
    ids: list[np.ndarray] = []
    encoded = tokenizer.encode_arrays([text for text, _ in shard.parts])
    for part, (_, starts) in zip(encoded, shard.parts, strict=True):
        if starts:
            ids.append(separator)
        ids.append(part.astype(separator.dtype))
    together = np.concatenate(ids)
    unknown = tokenizer.unknown_id
    counts = Counts(len(together), 0 if unknown is None else int(np.count_nonzero(together == unknown)))
    inside = shard.inside
    for text, starts in shard.parts:
        counts.words += count_words(text, inside and not starts) + text.count("\n")
        counts.bytes += len(text.encode())
        inside = not text[-1].isspace()
        if len(counts.characters) < 2:
            counts.add(Counts(characters="".join(sorted(set(text))[:2])))
    return together, counts


def count_words(text: str, inside: bool = False) -> int:
    """len(text.split()), eight times as fast; a first word that only goes on with one is not counted (`inside`)."""
    if not text:
        return 0
    space = _SPACE[np.minimum(np.frombuffer(text.encode("utf-32-le"), np.uint32), _LAST_SPACE + 1)]
    first = not inside and not space[0]
    return int(np.count_nonzero(space[:-1] & ~space[1:])) + int(first)


def token_type(tokenizer: TextTokenizer) -> type[np.uint16] | type[np.uint32]:
    """The narrowest type of unsigned integers, from 16 bits, that holds every id."""
    return np.uint16 if tokenizer.vocab_size < 65536 else np.uint32


def _safe_cut(text: str) -> int:
    """The last place in `text` where a word or sign ends and blanks begin; the end of the text if there is none."""
    for start in (max(0, len(text) - 1024), 0):
        places = [match.start() for match in _BLANK_AFTER_WORD.finditer(text, start)]
        if places:
            return places[-1]
    return len(text)
