"""Writing a token file: shards are appended, with a journal alongside the file, so that a killed run can be resumed.

    train.bin      ids of shard 0 | ids of shard 1 | …
    train.jsonl    {"size", "sha256", "counts"} of shard 0, of shard 1 …, and at the end {"end": true}

A shard is valid if its line is complete and its bytes have the checksum; the file is cut after the last valid one.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from ltc_textgen.data.corpora import Corpus
from ltc_textgen.data.tokenize import Counts, encode_shards, shards, worker_count
from ltc_textgen.data.tokenizers import TextTokenizer

REPORT_INTERVAL = 0.25
"""Seconds between two reports of progress, at least."""


@dataclass(frozen=True)
class Tokenizing:
    """Progress of the tokenization of a split.

    Args:
        split: train or valid.
        bytes: Text that is tokenised, bytes in UTF-8.
        total_bytes: All of it, about; None if not known.
        done: Fraction that is tokenised, 0 to 1; None if not known.
        bytes_per_second: Speed since this process began.
        seconds: Time since this process began with the split.
        remaining: Seconds to its end; None if not known.
    """

    split: str
    bytes: int
    total_bytes: int | None
    done: float | None
    bytes_per_second: float
    seconds: float
    remaining: float | None


Progress = Callable[[Tokenizing], None]


class TokenWriter:
    """Writes a token file from its beginning, or continues one that was interrupted.

    Args:
        path: The file; its journal has the suffix .jsonl.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._journal = path, path.with_suffix(".jsonl")
        self.counts = Counts()
        self.shards = 0
        self.complete = False
        self._digest = hashlib.sha256()
        self._size = 0
        self._recover()

    @property
    def state(self) -> list[Any]:
        """Size and SHA-256 of the file so far."""
        return [self._size, self._digest.hexdigest()]

    def write(self, results: Iterator[tuple[np.ndarray, Counts]]) -> Iterator[None]:
        """Append shards as they arrive, one for each step of this iterator."""
        with self._path.open("ab") as file, self._journal.open("ab") as journal:
            for ids, counts in results:
                content = ids.tobytes()
                line = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "counts": asdict(counts)}
                _append(file, content)
                _append(journal, json.dumps(line).encode() + b"\n")
                self._count(content, counts)
                yield
            _append(journal, b'{"end": true}\n')
        self.complete = True

    def _count(self, content: bytes, counts: Counts) -> None:
        self._digest.update(content)
        self._size += len(content)
        self.counts.add(counts)
        self.shards += 1

    def _recover(self) -> None:
        length = 0
        if self._journal.exists() and self._path.exists():
            with self._path.open("rb") as file, self._journal.open("rb") as journal:
                for line in journal:
                    if not self._take(line, file):
                        break
                    length += len(line)
                    if self.complete:
                        break
        for path, size in ((self._path, self._size), (self._journal, length)):
            with path.open("ab") as file:
                file.truncate(size)

    def _take(self, line: bytes, file: IO[bytes]) -> bool:
        """Add the shard of a line of the journal if it is valid; whether it is."""
        try:
            record = json.loads(line) if line.endswith(b"\n") else {}
            if record.get("end") is True:
                self.complete = True
                return True
            content = file.read(record["size"])
            if hashlib.sha256(content).hexdigest() != record["sha256"]:
                return False
            self._count(content, Counts.from_dict(record["counts"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return True


def write_split(
    corpus: Corpus, split: str, tokenizer: TextTokenizer, path: Path, progress: Progress | None = None
) -> TokenWriter:
    """Tokenise a split into a file, or the rest of it if the file is incomplete.

    Args:
        corpus: The text.
        split: Part of it: train or valid.
        tokenizer: Encodes the text.
        path: Token file.
        progress: Called several times a second.

    Raises:
        DataError: If the text cannot be read.
        OSError: If the file cannot be written.
    """
    writer = TokenWriter(path)
    if writer.complete:
        return writer
    start, reported, before = time.perf_counter(), 0.0, writer.counts.bytes
    # The text of shards that are written is read again to find the place, but not encoded.
    missing = islice(shards(corpus.chunks(split), tokenizer.kind), writer.shards, None)
    with closing(encode_shards(tokenizer, missing, worker_count())) as results:
        for _ in writer.write(results):
            seconds = time.perf_counter() - start
            if progress is not None and seconds - reported >= REPORT_INTERVAL:
                reported = seconds
                progress(_progress(corpus, split, writer.counts.bytes, before, seconds))
    return writer


def _progress(corpus: Corpus, split: str, done: int, before: int, seconds: float) -> Tokenizing:
    total, speed = corpus.size(split), (done - before) / seconds
    if total is None:
        return Tokenizing(split, done, None, None, speed, seconds, None)
    total = max(total, done)
    return Tokenizing(split, done, total, done / total, speed, seconds, (total - done) / max(speed, 1.0))


def _append(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()
