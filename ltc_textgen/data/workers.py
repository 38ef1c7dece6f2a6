"""Shards of text to token ids, in this process or in several, in order and in bounded memory.

Other processes are started only when a text turns out to be long. They are plain Python processes that talk over
their pipes, so that neither a fork of a process with threads nor an import of the caller's script is involved:

    python -c "from ltc_textgen.data.workers import serve; serve()"
        <- {"kind", "separator", "size"} tokenizer.json          first, and then for every shard
        <- {"lengths", "starts", "inside", "size"} text          each a line of JSON, and `size` bytes
        -> {"counts", "type", "size"} ids                        or {"error"}

One that dies is noticed at once, since its pipes close; and when the process that started them dies, they end too.
"""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from itertools import islice
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from ltc_textgen.data.shards import Counts, Shard, encode_shard
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import DataError

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
            [sys.executable, "-c", "from ltc_textgen.data.workers import serve; serve()"],
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
