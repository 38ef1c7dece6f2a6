"""Shards of text: what is tokenised at once, by this process or by another, and counted on the way.

    documents in pieces -> parts, each encoded on its own -> shards of some millions of characters

The cuts depend on the text and the tokenizer's kind alone, so the tokens are the same whoever makes them, and a
shard that was made once need not be made again.

Shards of text to token ids, in this process or in several, in order and in bounded memory.

Other processes are started only when a text turns out to be long. They are plain Python processes that talk over
their pipes, so that neither a fork of a process with threads nor an import of the caller's script is involved:

    python -c "from ltc_textgen.data.tokenize import serve; serve()"
        <- {"kind", "separator", "size"} tokenizer.json          first, and then for every shard
        <- {"lengths", "starts", "inside", "size"} text          each a line of JSON, and `size` bytes
        -> {"counts", "type", "size"} ids                        or {"error"}

One that dies is noticed at once, since its pipes close; and when the process that started them dies, they end too.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from ltc_textgen.data.text_files import Piece
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import DataError

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


ALONE = 8
"""Shards that this process makes by itself before it starts others: a short text is done by then."""

MOST = 16
"""Most processes; more than one process can read text for would only take memory."""


class WorkerError(DataError):
    """A process that tokenises has died; what the others made is kept."""


def worker_count() -> int:
    """Processes to tokenise with: LTC_WORKERS, or as many as this process may use cores, at most `MOST`."""
    wanted = os.environ.get("LTC_WORKERS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def encode_shards(
    tokenizer: TextTokenizer, shards: Iterator[Shard], workers: int
) -> Generator[tuple[np.ndarray, Counts], None, None]:
    """`encode_shard` of each, in order.

    Args:
        tokenizer: What encodes them.
        shards: Read as the results are taken, at most twice as many ahead as there are processes.
        workers: Processes for all but the first `ALONE` shards; with 1 this process makes them all.

    Raises:
        WorkerError: If one of the processes dies.
    """
    if workers < 2:
        for shard in shards:
            yield encode_shard(tokenizer, shard)
        return
    for shard in islice(shards, ALONE):
        yield encode_shard(tokenizer, shard)
    first = next(shards, None)
    if first is None:
        return
    with ExitStack() as stack:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        started = [_Worker(tokenizer) for _ in range(workers)]
        for worker in started:
            idle.put(worker)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        # The threads wait for the processes: these have to end first.
        for worker in started:
            stack.callback(worker.end)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)

        def encode(shard: Shard) -> tuple[np.ndarray, Counts]:
            worker = idle.get()
            try:
                return worker.encode(shard)
            finally:
                idle.put(worker)  # a dead one too: who gets it fails at once, and nobody waits for ever

        pending: deque[Future[tuple[np.ndarray, Counts]]] = deque([pool.submit(encode, first)])
        for shard in shards:
            pending.append(pool.submit(encode, shard))
            _raise_failure(pending)
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            _raise_failure(pending)
            yield pending.popleft().result()


def serve() -> None:
    """Be a worker: read shards from stdin and write ids to stdout until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process decides
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write into the answers
    header, content = _receive(requests)
    tokenizer = TextTokenizer(content.decode(), header["kind"], header["separator"])
    with suppress(EOFError, BrokenPipeError):
        while True:
            header, content = _receive(requests)
            try:
                ids, counts = encode_shard(tokenizer, _unpack(header, content))
            except Exception as error:  # told to the other side, which knows the corpus
                _send(answers, {"error": f"{type(error).__name__}: {error}"}, b"")
            else:
                _send(answers, {"counts": asdict(counts), "type": ids.dtype.name}, ids.tobytes())


class _Worker:
    """A process that tokenises, seen from the one that started it."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        one = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(path or os.curdir for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from ltc_textgen.data.tokenize import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **one, "PYTHONPATH": path},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._hello: tuple[dict[str, Any], bytes] | None = (
            {"kind": tokenizer.kind, "separator": tokenizer.separator},
            tokenizer.content.encode(),
        )

    def encode(self, shard: Shard) -> tuple[np.ndarray, Counts]:
        """As `encode_shard`."""
        request = _pack(shard)
        try:
            if self._hello is not None:
                _send(self._requests, *self._hello)
                self._hello = None
            _send(self._requests, *request)
            header, content = _receive(self._answers)
        except (EOFError, OSError, ValueError):
            raise WorkerError(self._obituary()) from None
        if "error" in header:
            raise DataError(f"the text could not be tokenised: {header['error']}")
        return np.frombuffer(content, header["type"]), Counts.from_dict(header["counts"])

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()

    def _obituary(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:  # it has closed its pipes, but lives
            self._process.kill()
            code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
        memory = "; perhaps memory ran out: fewer processes need less (LTC_WORKERS=1)" if code == -9 else ""
        return (
            f"a process that tokenises (pid {self._process.pid}) ended with {how}{memory}. What is made so far is "
            "kept: the same command goes on from there"
        )


def _raise_failure(pending: "deque[Future[tuple[np.ndarray, Counts]]]") -> None:
    """Raise what any of them has failed with, so that it is not learned of only when its turn comes."""
    for future in pending:
        if future.done() and not future.cancelled() and (failure := future.exception()) is not None:
            raise failure


def _pack(shard: Shard) -> tuple[dict[str, Any], bytes]:
    texts = [text for text, _ in shard.parts]
    header = {"lengths": [len(text) for text in texts], "starts": [starts for _, starts in shard.parts]}
    return {**header, "inside": shard.inside}, "".join(texts).encode()


def _unpack(header: dict[str, Any], content: bytes) -> Shard:
    text, parts, position = content.decode(), [], 0
    for length, starts in zip(header["lengths"], header["starts"], strict=True):
        parts.append((text[position : position + length], starts))
        position += length
    return Shard(parts, header["inside"])


def _send(stream: IO[bytes], header: dict[str, Any], content: bytes) -> None:
    stream.write(json.dumps({**header, "size": len(content)}).encode() + b"\n")
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Raises EOFError if the other side is gone, also in the middle of a message."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header: dict[str, Any] = json.loads(line)
    content = stream.read(header["size"])
    if len(content) < header["size"]:
        raise EOFError
    return header, content
