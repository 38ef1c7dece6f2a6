"""Long texts: several processes, kills in the middle, damaged beginnings, progress."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ltc_textgen.config import DataConfig
from ltc_textgen.data import token_cache, token_writer, tokenize
from ltc_textgen.data.token_cache import TokenData, cache_directory, prepare
from ltc_textgen.data.token_writer import Tokenizing, TokenWriter
from ltc_textgen.errors import DataError

SIZE = 4000


@pytest.fixture
def text_file(tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tokenize, "PART", 500)
    monkeypatch.setattr(tokenize, "SHARD", SIZE)
    monkeypatch.setattr(tokenize, "ALONE", 2)
    monkeypatch.setenv("LTC_WORKERS", "1")
    draw = random.Random(0)
    words = ["cat", "lobster", "it's", "Straße", "\U0001f600", "1234", "\u2003", "…", "\n"]
    rows = [" ".join(draw.choices(words, k=draw.randint(1, 700))) for _ in range(60)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def made(path: Path, kind: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> tuple[TokenData, dict[str, object]]:
    monkeypatch.setenv("LTC_CACHE", str(path.parent / cache))
    data = prepare(DataConfig(data=str(path), tokenizer=kind, vocabulary_size=600))
    (folder,) = (found for found in (cache_directory() / "tokens").iterdir() if found.is_dir())
    assert sorted(found.name for found in folder.iterdir()) == sorted([*token_cache._FILES, "facts.json"])
    return data, json.loads((folder / "facts.json").read_text())


@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece"])
def test_several_processes_make_what_one_makes(text_file: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, facts = made(text_file, kind, "one", monkeypatch)
    monkeypatch.setenv("LTC_WORKERS", "3")
    started: list[int] = []
    original = tokenize._Worker.encode
    monkeypatch.setattr(
        tokenize._Worker, "encode", lambda w, shard: (started.append(w._process.pid), original(w, shard))[1]
    )
    several, facts_of_several = made(text_file, kind, "several", monkeypatch)
    assert len(set(started)) > 1
    assert facts_of_several == facts
    assert several.tokenizer.content == one.tokenizer.content
    for split in ("train", "valid"):
        assert np.array_equal(getattr(one, split), getattr(several, split))
        text = "".join(getattr(one.corpus, split)())
        assert one.tokenizer.decode(getattr(several, split).tolist()) == text
    assert one.valid_words == sum(len(text.split()) + text.count("\n") for text in one.corpus.valid())


def test_a_short_text_starts_no_process(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTC_WORKERS", "4")
    monkeypatch.setattr(tokenize, "SHARD", 1 << 21)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    assert len(made(text_file, "char", "cache", monkeypatch)[0].train)


def test_as_many_processes_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LTC_WORKERS", raising=False)
    assert tokenize.worker_count() == min(len(os.sched_getaffinity(0)), tokenize.MOST)
    monkeypatch.setenv("LTC_WORKERS", "5")
    assert tokenize.worker_count() == 5


KILLED = """
import os, sys, time
from ltc_textgen.config import DataConfig
from ltc_textgen.data import shards, workers, writer
from ltc_textgen.data.token_cache import prepare
tokenize.PART, tokenize.SHARD, tokenize.ALONE = 500, int(sys.argv[2]), 2
def slow(*_):
    print("shard", flush=True)
    time.sleep(0.03)
original = token_writer.TokenWriter._count
token_writer.TokenWriter._count = lambda *arguments: (original(*arguments), slow())
prepare(DataConfig(data=sys.argv[1], tokenizer="wordpiece", vocabulary_size=600))
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_killed_run_goes_on_where_it_was(text_file: Path, processes: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    there = len((folder / "train.jsonl").read_text().splitlines())
    assert 7 <= there <= 12
    encoded: list[str] = []
    original = tokenize.encode_shard
    monkeypatch.setattr(
        tokenize, "encode_shard", lambda tokenizer, shard: (encoded.append(""), original(tokenizer, shard))[1]
    )
    monkeypatch.setattr(token_cache, "_build", lambda *_: pytest.fail("the tokenizer was there"))
    again, facts_again = made(text_file, "wordpiece", "killed", monkeypatch)
    total = sum(len(list(tokenize.shards(again.corpus.pieces(split), "wordpiece"))) for split in ("train", "valid"))
    assert total > 16
    assert len(encoded) == total - there
    assert facts_again == facts
    assert np.array_equal(again.train, whole.train)
    assert np.array_equal(again.valid, whole.valid)


def test_a_worker_that_is_killed_is_one_error_in_seconds(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, facts = made(text_file, "char", "whole", monkeypatch)
    monkeypatch.setenv("LTC_WORKERS", "2")
    pids: list[int] = []
    original = tokenize._Worker.encode

    def encode(worker: tokenize._Worker, shard: tokenize.Shard) -> object:
        pids.append(worker._process.pid)
        if len(pids) == 6:
            os.kill(pids[-1], signal.SIGKILL)
        return original(worker, shard)

    monkeypatch.setattr(tokenize._Worker, "encode", encode)
    start, threads = time.perf_counter(), threading.active_count()
    with pytest.raises(DataError, match=r"ended with signal 9 \(SIGKILL\).*the same command goes on") as failure:
        made(text_file, "char", "killed", monkeypatch)
    assert time.perf_counter() - start < 5
    assert "\n" not in str(failure.value)
    assert threading.active_count() == threads
    for pid in set(pids):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    (folder,) = (cache_directory() / "tokens").glob("*.new")
    assert len((folder / "train.jsonl").read_text().splitlines()) >= tokenize.ALONE
    monkeypatch.setattr(tokenize._Worker, "encode", original)
    assert made(text_file, "char", "killed", monkeypatch)[1] == facts


def test_all_workers_killed_at_once_hang_nothing(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTC_WORKERS", "2")
    original = tokenize._Worker.__init__

    def dead(worker: tokenize._Worker, tokenizer: object) -> None:
        original(worker, tokenizer)
        worker._process.kill()

    monkeypatch.setattr(tokenize._Worker, "__init__", dead)
    with pytest.raises(DataError, match="ended with signal 9"):
        made(text_file, "char", "killed", monkeypatch)


def test_what_goes_wrong_in_a_worker_is_told(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTC_WORKERS", "2")
    original = tokenize._pack
    monkeypatch.setattr(tokenize, "_pack", lambda shard: (original(shard)[0] | {"starts": []}, original(shard)[1]))
    with pytest.raises(DataError, match="could not be tokenised: ValueError"):
        made(text_file, "byte", "wrong", monkeypatch)


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
        return np.full(10, n, np.uint16), tokenize.Counts(10, 0, n, n, "ab")

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


def test_a_killed_run_with_another_tokenizer_file_starts_anew(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_progress_tells_share_speed_and_time_left(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_writer, "TOLD_EVERY", 0.0)
    told: list[Tokenizing] = []
    data = prepare(DataConfig(data=str(text_file), tokenizer="char"), progress=told.append)
    train = [state for state in told if state.split == "train"]
    assert len(train) > 5
    assert [state.bytes for state in train] == sorted(state.bytes for state in train)
    size = len("".join(data.corpus.train()).encode())
    assert train[-1].bytes == size
    assert train[-1].total_bytes == pytest.approx(size, rel=0.05)
    assert train[-1].done == pytest.approx(1.0, abs=0.05)
    half = train[len(train) // 2]
    assert half.done == half.bytes / half.total_bytes
    assert half.remaining == pytest.approx((half.total_bytes - half.bytes) / half.bytes_per_second)
    assert told[-1].split == "valid"
