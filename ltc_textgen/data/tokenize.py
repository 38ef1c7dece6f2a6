"""Text to token ids: documents are cut into parts and shards, and shards are encoded in order by several threads.

    documents in chunks -> parts, each encoded on its own -> shards of two million characters -> ids and counts

Where a text is cut depends on the text and the tokenizer's kind alone, so the ids are the same for any number of
threads, and a shard that was encoded before an interruption need not be encoded again.

Threads are enough: `tokenizers` (Rust) and NumPy release the interpreter lock while they encode. Measured on 31 MB and
two busy cores, processes that exchange text and ids over pipes had a third of the speed or less (docs/log.md).
"""

import os
import re
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ltc_textgen.data.text_files import Chunk
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import UsageError

PART = 1 << 16
"""Characters that are encoded as one text, where a tokenizer allows a cut."""

WHOLE = 1 << 22
"""Characters beyond which a document is cut even for a tokenizer of unknown kind."""

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
        inside: The text before this shard ended in the middle of a word, which the first part continues.
    """

    parts: list[tuple[str, bool]]
    inside: bool = False


@dataclass
class Counts:
    """What is counted of a text.

    Args:
        tokens: Token ids, EOS tokens included.
        unknown: Those of them that are the unknown token.
        words: Runs of non-blank characters plus line ends.
        bytes: Bytes of the text in UTF-8.
        length: Characters of the text.
        documents: Documents that start in it.
        characters: Up to two different characters of the text.
        spelled: How often the text spells a special token, such as <|endoftext|>, in ordinary characters.
    """

    tokens: int = 0
    unknown: int = 0
    words: int = 0
    bytes: int = 0
    length: int = 0
    documents: int = 0
    characters: str = ""
    spelled: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Counts") -> None:
        """Add the counts of another text."""
        self.tokens += other.tokens
        self.unknown += other.unknown
        self.words += other.words
        self.bytes += other.bytes
        self.length += other.length
        self.documents += other.documents
        self.characters = "".join(sorted({*self.characters, *other.characters})[:2])
        self.spelled = dict(Counter(self.spelled) + Counter(other.spelled))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Counts":
        """The inverse of `dataclasses.asdict`; raises TypeError or KeyError for anything else."""
        counts = cls(**{name: values[name] for name in cls.__dataclass_fields__})
        counts.add(cls())  # a TypeError for a value of another type
        return counts


def text_parts(chunks: Iterator[Chunk], kind: str) -> Iterator[tuple[str, bool]]:
    """Cut documents where it does not change their tokens, into parts that are encoded each on its own.

    Characters and bytes may be cut anywhere; wordpiece and bert where blanks begin (65,536 characters without such a
    place are cut nevertheless); custom tokenizers get whole documents up to four million characters, and of longer
    ones so many at a time, cut where blanks begin.

    Args:
        chunks: Documents in chunks of any length.
        kind: The tokenizer's kind.

    Yields:
        Text, and whether a document starts with it.
    """
    size = WHOLE if kind == "custom" else PART
    held, starts = "", True
    waiting: list[str] = []  # joined only when there is enough: a long document comes in many chunks
    length = 0
    for text, ends in chunks:
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


def shards(chunks: Iterator[Chunk], kind: str) -> Iterator[Shard]:
    """Gather the parts of documents in shards."""
    parts: list[tuple[str, bool]] = []
    size, inside, follows = 0, False, False
    for text, starts in text_parts(chunks, kind):
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
    """Token ids of a shard, the EOS token before each document, as uint16 or uint32; and what was counted."""
    eos = np.array([tokenizer.eos_token_id], dtype=token_type(tokenizer))
    ids: list[np.ndarray] = []
    encoded = tokenizer.encode_arrays([text for text, _ in shard.parts])
    for part, (_, starts) in zip(encoded, shard.parts, strict=True):
        if starts:
            ids.append(eos)
        ids.append(part.astype(eos.dtype))
    together = np.concatenate(ids)
    unknown = tokenizer.unk_token_id
    counts = Counts(len(together), 0 if unknown is None else int(np.count_nonzero(together == unknown)))
    inside = shard.inside
    for text, starts in shard.parts:
        counts.words += count_words(text, inside and not starts) + text.count("\n")
        counts.bytes += len(text.encode())
        counts.length += len(text)
        counts.documents += starts
        inside = not text[-1].isspace()
        if len(counts.characters) < 2:
            counts.add(Counts(characters="".join(sorted(set(text))[:2])))
    counts.spelled = tokenizer.spelled_specials("".join(text for text, _ in shard.parts))
    return together, counts


def count_words(text: str, inside: bool = False) -> int:
    """len(text.split()), eight times as fast; a first word that only continues one is not counted (`inside`)."""
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


MOST_THREADS = 16
"""Most threads that encode; one thread that reads cannot feed more, and each holds two shards in memory."""


def worker_count() -> int:
    """Threads to encode with: LTC_WORKERS, or as many cores as this process may use, at most `MOST_THREADS`.

    Raises:
        UsageError: If LTC_WORKERS is no number >= 1.
    """
    wanted = os.environ.get("LTC_WORKERS", "")
    if wanted:
        if not (wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:4]) <= 1024):
            raise UsageError(f"LTC_WORKERS={wanted}: expected a number of threads from 1 to 1024")
        return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


def encode_shards(
    tokenizer: TextTokenizer, shards: Iterator[Shard], workers: int
) -> Generator[tuple[np.ndarray, Counts], None, None]:
    """`encode_shard` of each shard, in order.

    Args:
        tokenizer: Encodes them.
        shards: Read as the results are taken, at most twice as many ahead as there are threads.
        workers: Threads; with 1, or for a single shard, the calling thread does all.
    """
    first = next(shards, None)
    second = next(shards, None) if first is not None and workers > 1 else None
    if first is not None:
        yield encode_shard(tokenizer, first)
    if second is None:
        yield from (encode_shard(tokenizer, shard) for shard in shards)
        return
    pool = ThreadPoolExecutor(workers, "tokenize")
    try:
        pending: deque[Future[tuple[np.ndarray, Counts]]] = deque([pool.submit(encode_shard, tokenizer, second)])
        for shard in shards:
            pending.append(pool.submit(encode_shard, tokenizer, shard))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
