"""Long texts: several threads, kills in the middle, damaged beginnings, progress."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ltc_textgen.config import DataConfig
from ltc_textgen.data import token_cache, token_writer, tokenize
from ltc_textgen.data.token_cache import TokenData, cache_directory, prepare
from ltc_textgen.data.token_writer import Tokenizing, TokenWriter
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.data.train_tokenizer import byte_tokenizer
from ltc_textgen.errors import DataError, UsageError

SIZE = 4000


@pytest.fixture
def text_file(tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tokenize, "PART", 500)
    monkeypatch.setattr(tokenize, "SHARD", SIZE)
    monkeypatch.setenv("LTC_WORKERS", "1")
    draw = random.Random(0)
    words = ["cat", "lobster", "it's", "Straße", "\U0001f600", "1234", "\u2003", "…", "\n"]
    rows = [" ".join(draw.choices(words, k=draw.randint(1, 700))) for _ in range(60)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def made(path: Path, kind: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> tuple[TokenData, dict[str, object]]:
    monkeypatch.setenv("LTC_CACHE", str(path.parent / cache))
    data = prepare(DataConfig(data=str(path), tokenizer=kind, vocab_size=600))
    (folder,) = (found for found in (cache_directory() / "tokens").iterdir() if found.is_dir())
    assert sorted(found.name for found in folder.iterdir()) == sorted([*token_cache._FILES, "facts.json"])
    return data, json.loads((folder / "facts.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece"])
def test_several_threads_make_what_one_makes(text_file: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, facts = made(text_file, kind, "one", monkeypatch)
    monkeypatch.setenv("LTC_WORKERS", "3")
    threads: set[int] = set()
    several_started = threading.Event()
    original = tokenize.encode_shard

    def encode(tokenizer: TextTokenizer, shard: tokenize.Shard) -> tuple[np.ndarray, tokenize.Counts]:
        threads.add(threading.get_ident())
        if len(threads) > 1:
            several_started.set()
        several_started.wait(60)  # so that no thread is done with all before the others start
        return original(tokenizer, shard)

    monkeypatch.setattr(tokenize, "encode_shard", encode)
    several, facts_of_several = made(text_file, kind, "several", monkeypatch)
    assert several_started.is_set()
    assert facts_of_several == facts
    assert several.tokenizer.content == one.tokenizer.content
    for split in ("train", "valid"):
        assert np.array_equal(getattr(one, split), getattr(several, split))
        text = "".join(getattr(one.corpus, split)())
        assert one.tokenizer.decode(getattr(several, split).tolist()) == text
    assert one.valid_words == sum(len(text.split()) + text.count("\n") for text in one.corpus.valid())


def test_shards_are_read_no_further_ahead_than_twice_the_threads() -> None:
    read: list[int] = []

    def shards() -> Iterator[tokenize.Shard]:
        for n in range(50):
            read.append(n)
            yield tokenize.Shard([("text", True)])

    results = tokenize.encode_shards(byte_tokenizer(), shards(), 2)
    for taken in range(1, 20):
        next(results)
        assert len(read) <= taken + 4
    results.close()
    assert threading.active_count() < 40


def test_a_short_text_starts_no_thread(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTC_WORKERS", "4")
    monkeypatch.setattr(tokenize, "SHARD", 1 << 21)
    monkeypatch.setattr(tokenize, "ThreadPoolExecutor", lambda *_: pytest.fail("started"))
    assert len(made(text_file, "char", "cache", monkeypatch)[0].train)


def test_as_many_threads_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LTC_WORKERS", raising=False)
    assert tokenize.worker_count() == min(len(os.sched_getaffinity(0)), tokenize.MOST_THREADS)
    monkeypatch.setenv("LTC_WORKERS", "5")
    assert tokenize.worker_count() == 5
    for wrong in ("0", "-1", "many", "9" * 5000):
        monkeypatch.setenv("LTC_WORKERS", wrong)
        with pytest.raises(UsageError, match="LTC_WORKERS"):
            tokenize.worker_count()


@pytest.mark.parametrize("kind", ["char", "wordpiece"])
def test_a_forked_process_tokenises_too(text_file: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTC_WORKERS", "2")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    data, _ = made(text_file, kind, "parent", monkeypatch)
    child = os.fork()
    if child == 0:
        again, _ = made(text_file, kind, "child", monkeypatch)
        os._exit(0 if np.array_equal(again.train, data.train) else 1)
    assert os.waitpid(child, 0)[1] == 0


KILLED = """
import os, sys, time
from ltc_textgen.config import DataConfig
from ltc_textgen.data import token_writer, tokenize
from ltc_textgen.data.token_cache import prepare
tokenize.PART, tokenize.SHARD = 500, int(sys.argv[2])
shards = []
def slow(*_):
    shards.append(print("shard", flush=True))
    time.sleep(1000 if len(shards) == 7 else 0)
original = token_writer.TokenWriter._count
token_writer.TokenWriter._count = lambda *arguments: (original(*arguments), slow())
prepare(DataConfig(data=sys.argv[1], tokenizer="wordpiece", vocab_size=600))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_killed_run_resumes_where_it_was(text_file: Path, processes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, facts = made(text_file, "wordpiece", "whole", monkeypatch)
    cache = text_file.parent / "killed"
    environment = os.environ | {"LTC_WORKERS": processes, "LTC_CACHE": str(cache)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(text_file), str(SIZE)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(7):
        assert process.stdout.readline() == "shard\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (cache / "tokens").glob("*.new")
    there = (folder / "train.jsonl").read_text().count("\n")
    assert there == 7
    encoded: list[str] = []
    original = tokenize.encode_shard
    monkeypatch.setattr(
        tokenize, "encode_shard", lambda tokenizer, shard: (encoded.append(""), original(tokenizer, shard))[1]
    )
    monkeypatch.setattr(token_cache, "_build", lambda *_: pytest.fail("the tokenizer was there"))
    again, facts_again = made(text_file, "wordpiece", "killed", monkeypatch)
    total = sum(len(list(tokenize.shards(again.corpus.chunks(split), "wordpiece"))) for split in ("train", "valid"))
    assert total > 16
    assert len(encoded) == total - there
    assert facts_again == facts
    assert np.array_equal(again.train, whole.train)
    assert np.array_equal(again.valid, whole.valid)


def test_what_goes_wrong_in_a_thread_is_raised_and_leaves_no_thread(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTC_WORKERS", "2")
    original, done = tokenize.encode_shard, []

    def encode(tokenizer: TextTokenizer, shard: tokenize.Shard) -> tuple[np.ndarray, tokenize.Counts]:
        done.append(1)
        if len(done) == 6:
            raise DataError("broken")
        return original(tokenizer, shard)

    monkeypatch.setattr(tokenize, "encode_shard", encode)
    before = threading.active_count()
    with pytest.raises(DataError, match="broken"):
        made(text_file, "char", "wrong", monkeypatch)
    assert threading.active_count() == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def more(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize("damage", [cut, flip, more, Path.unlink])
@pytest.mark.parametrize("name", ["train.bin", "train.jsonl"])
def test_a_damaged_beginning_is_cut_off(tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
    def shard(n: int) -> tuple[np.ndarray, tokenize.Counts]:
        return np.full(10, n, np.uint16), tokenize.Counts(10, 0, n, n, characters="ab")

    path = tmp_path / "train.bin"
    list(TokenWriter(path).write(shard(n) for n in range(6)))
    whole = path.read_bytes()
    lines = (tmp_path / "train.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_bytes(b"".join(lines[:-1]))  # killed before the end
    damage(tmp_path / name)
    again = TokenWriter(path)
    assert not again.complete
    expected = {"cut": 5, "flip": 3, "more": 6, "unlink": 0}[damage.__name__]
    assert abs(again.shards - expected) <= (name == "train.jsonl" and damage is flip)
    assert again.counts.words == sum(range(again.shards))
    list(again.write(shard(n) for n in range(again.shards, 6)))
    assert path.read_bytes() == whole
    assert (tmp_path / "train.jsonl").read_bytes() == b"".join(lines)
    complete = TokenWriter(path)
    assert complete.complete
    assert complete.state == again.state == token_cache._state(path)


def test_a_killed_run_with_another_tokenizer_file_starts_over(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, facts = made(text_file, "char", "whole", monkeypatch)
    (folder,) = (found for found in (cache_directory() / "tokens").iterdir() if found.is_dir())
    fresh = folder.with_name(folder.name + ".new")
    folder.rename(fresh)
    (fresh / token_cache._BEGUN).write_text("of another")
    (fresh / "train.jsonl").write_text('{"end": true}\n')
    assert made(text_file, "char", "whole", monkeypatch)[1] == facts


def test_what_was_abandoned_long_ago_goes(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = text_file.parent / "cache" / "tokens"
    for name, age in (("old.new", 8), ("young.new", 6)):
        (folder / name).mkdir(parents=True)
        then = time.time() - age * 24 * 3600
        os.utime(folder / name, (then, then))
    monkeypatch.setenv("LTC_CACHE", str(folder.parent))
    prepare(DataConfig(data=str(text_file), tokenizer="char"))
    assert [path.name for path in folder.glob("*.new")] == ["young.new"]


def test_progress_reports_fraction_speed_and_time_left(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_writer, "REPORT_INTERVAL", 0.0)
    reported: list[Tokenizing] = []
    data = prepare(DataConfig(data=str(text_file), tokenizer="char"), progress=reported.append)
    train = [state for state in reported if state.split == "train"]
    assert len(train) > 5
    assert [state.bytes for state in train] == sorted(state.bytes for state in train)
    size = len("".join(data.corpus.train()).encode())
    assert train[-1].bytes == size
    assert train[-1].total_bytes == pytest.approx(size, rel=0.05)
    assert train[-1].done == pytest.approx(1.0, abs=0.05)
    half = train[len(train) // 2]
    assert half.done == half.bytes / half.total_bytes
    assert half.remaining == pytest.approx((half.total_bytes - half.bytes) / half.bytes_per_second)
    assert reported[-1].split == "valid"
