import errno
import json
import os
import random
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from tokenizer_kinds import made

import ltc_textgen.data.token_cache as module
from ltc_textgen.config import DataConfig
from ltc_textgen.data import tokenize
from ltc_textgen.data.token_cache import cache_directory, prepare
from ltc_textgen.data.tokenize import count_words, encode_shard, text_parts
from ltc_textgen.errors import DataError


@pytest.fixture
def text_file(tmp_path: Path, fresh_cache: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {n} of the téxt, {n * n}.\n" for n in range(500)), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece"])
def test_the_tokens_are_the_text(text_file: Path, kind: str) -> None:
    data = prepare(DataConfig(data=str(text_file), tokenizer=kind, vocab_size=600))
    tokenizer = data.tokenizer
    assert tokenizer.kind == kind
    assert data.train.dtype == np.uint16
    for split in ("train", "valid"):
        text = "".join(getattr(data.corpus, split)())
        tokens = getattr(data, split).tolist()
        assert tokens == [tokenizer.eos_token_id, *tokenizer.encode(text)]
        assert tokenizer.decode(tokens) == text
    valid = "".join(data.corpus.valid())
    assert data.valid_bytes == len(valid.encode())
    assert data.valid_words == len(valid.split()) + valid.count("\n")
    assert data.train_unknown == data.valid_unknown == 0
    with pytest.raises(ValueError, match="read-only"):
        data.train[0] = 1


def test_documents_are_set_apart_and_unknown_tokens_counted(tmp_path: Path, fresh_cache: Path) -> None:
    rows = [{"text": text} for text in ("abc", " ", "ba\n", "cab", "aXbYc d")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepare(DataConfig(data=str(tmp_path / "a.jsonl"), tokenizer="char", valid_fraction=0.44))
    pieces = [data.tokenizer.token(index) for index in data.train.tolist()]
    mark = data.tokenizer.eos_token
    assert pieces == [mark, *"abc", mark, *"ba\n", mark, *"ca"][: len(pieces)]
    assert data.corpus.name == str(tmp_path / "a.jsonl")
    unknown = [c for c in "".join(data.corpus.valid()) if c not in "".join(data.corpus.train())]
    assert data.valid_unknown == len(unknown) > 0
    assert np.count_nonzero(data.valid == data.tokenizer.eos_token_id) == len(list(data.corpus.valid()))


@pytest.mark.slow
def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, fresh_cache: Path) -> None:
    text = "".join(chr(code) for code in range(0x10000, 0x10000 + 70_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    data = prepare(DataConfig(data=str(tmp_path / "a.txt"), tokenizer="char", valid_fraction=0.01))
    assert data.tokenizer.vocab_size > 65536
    assert data.train.dtype == np.uint32
    assert data.tokenizer.decode(data.train.tolist()) == text[:69300]


def test_the_second_time_nothing_is_tokenised(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(data=str(text_file), tokenizer="wordpiece", vocab_size=600)
    first = prepare(config)
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("made again"))
    said: list[str] = []
    again = prepare(config, said.append)
    assert said == []
    assert (again.fingerprint, again.valid_words, again.valid_bytes) == (
        first.fingerprint,
        first.valid_words,
        first.valid_bytes,
    )
    assert np.array_equal(first.train, again.train)


def test_every_setting_has_its_own_tokens(text_file: Path) -> None:
    base = DataConfig(data=str(text_file), tokenizer="wordpiece", vocab_size=600)
    changes = [{}, {"tokenizer": "byte"}, {"vocab_size": 700}, {"valid_fraction": 0.2}]
    keys = {prepare(base.model_copy(update=change)).fingerprint for change in changes}
    assert len(keys) == 4
    text_file.write_text(text_file.read_text() + "more")
    assert prepare(base).fingerprint not in keys


@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "tokenizer.json", "facts.json"])
@pytest.mark.parametrize("how", ["bit", "cut", "gone"])
def test_a_damaged_cache_is_made_again(text_file: Path, name: str, how: str) -> None:
    config = DataConfig(data=str(text_file), tokenizer="char")
    expected = np.array(prepare(config).train)
    (folder,) = (path for path in (cache_directory() / "tokens").iterdir() if path.is_dir())
    content = bytearray((folder / name).read_bytes())
    if how == "gone":
        (folder / name).unlink()
    else:
        content[len(content) // 2] ^= 1
        if name == "facts.json" and how == "bit":
            content[0] = 0
        (folder / name).write_bytes(content if how == "bit" else content[:-3])
    said: list[str] = []
    data = prepare(config, said.append)
    assert np.array_equal(data.train, expected)
    assert "damaged" in said[0]
    assert [path.name for path in folder.parent.iterdir() if path.suffix == ".new"] == []


def test_no_space(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_split", full)
    with pytest.raises(DataError, match=r"No space left on device.*LTC_CACHE"):
        prepare(DataConfig(data=str(text_file), tokenizer="char"))
    left = [path.suffix for path in (cache_directory() / "tokens").iterdir()]
    assert left == [".lock"]


def test_a_cache_that_is_a_file(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTC_CACHE", str(text_file))
    with pytest.raises(DataError, match="LTC_CACHE"):
        prepare(DataConfig(data=str(text_file), tokenizer="char"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" * 5000, "character"),
        ("ab", "character"),
        ("a", "a.txt"),
    ],
)
@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece"])
def test_too_little_to_learn_from(tmp_path: Path, fresh_cache: Path, text: str, message: str, kind: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=message) as failure:
        prepare(DataConfig(data=str(tmp_path / "a.txt"), tokenizer=kind))
    assert "\n" not in str(failure.value)


def test_a_tokenizer_that_is_given_is_used(text_file: Path) -> None:
    given_ = made("wordpiece")
    data = prepare(DataConfig(data=str(text_file), tokenizer="char"), tokenizer=given_)
    assert data.tokenizer.fingerprint == given_.fingerprint
    assert data.tokenizer.decode(data.valid.tolist()) == "".join(data.corpus.valid())


def test_waiting_for_a_process_that_makes_the_same_tokens_is_reported(text_file: Path) -> None:
    config = DataConfig(data=str(text_file), tokenizer="byte")
    expected = prepare(config)
    folder = cache_directory() / "tokens" / expected.fingerprint[:32]
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    shutil.move(folder, folder.with_name("aside"))
    said, reported, found = [], threading.Event(), []

    def notify(line: str) -> None:
        said.append(line)
        reported.set()

    thread = threading.Thread(target=lambda: found.append(prepare(config, notify)))
    with lock:
        thread.start()
        assert reported.wait(60)
        assert not found
        shutil.move(folder.with_name("aside"), folder)
    thread.join(60)
    assert np.array_equal(found[0].train, expected.train)
    assert len(said) == 1
    assert str(folder) in said[0]


def test_a_complete_cache_is_used_without_a_lock(text_file: Path) -> None:
    config = DataConfig(data=str(text_file), tokenizer="byte")
    expected = prepare(config)
    with FileLock(cache_directory() / "tokens" / f"{expected.fingerprint[:32]}.lock"):
        said: list[str] = []
        assert np.array_equal(prepare(config, said.append).train, expected.train)
        assert said == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to become another user")
def test_a_lock_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(tempfile.mkdtemp(prefix="ltc-shared-"))
    cache.chmod(0o777)
    monkeypatch.setenv("LTC_CACHE", str(cache))
    text = cache / "text.txt"
    text.write_text("some text of some length\n" * 50)
    config = DataConfig(data=str(text), tokenizer="byte")
    (folder,) = {(cache / "tokens" / prepare(config).fingerprint[:32])}
    lock = folder.with_name(f"{folder.name}.lock")
    lock.touch(0o600)
    lock.chmod(0o600)
    for path in (cache / "tokens", folder):
        path.chmod(0o755)
    other = cache / "other.txt"
    other.write_text("another text of some length\n" * 50)
    os.seteuid(65534)
    try:
        prepare(config)
        with pytest.raises(DataError, match=r"Permission denied.*LTC_CACHE"):
            prepare(config.model_copy(update={"data": str(other)}))
    finally:
        os.seteuid(0)
        shutil.rmtree(cache)


def test_a_user_without_a_home_gets_a_private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LTC_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = cache_directory()
    assert found.parent == tmp_path
    assert found.stat().st_mode & 0o077 == 0
    found.rmdir()
    found.symlink_to(tmp_path)
    with pytest.raises(DataError, match="LTC_CACHE"):
        cache_directory()
    found.unlink()
    if os.geteuid() == 0:
        found.mkdir()
        os.chown(found, 65534, 65534)
        with pytest.raises(DataError, match="LTC_CACHE"):
            cache_directory()


def test_what_is_changed_in_reading_is_said_each_time(tmp_path: Path, fresh_cache: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "one text"}, {"text": None}, {"text": "<|im_start|> two <|im_start|> <|separator|>"}]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in rows * 20) + '{"text": "caf\udce9"}\n', "utf-8", "surrogateescape"
    )
    for _ in range(2):
        said: list[str] = []
        prepare(DataConfig(data=str(path), tokenizer="byte", encoding_errors="replace"), said.append)
        changed, spelled = (line for line in said if "made in" not in line)
        assert "20 rows" in changed
        assert "1 became U+FFFD" in changed
        assert "<|im_start|> (40 times)" in spelled
        assert "<|separator|> (20 times)" in spelled


@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece", "bert", "gpt2", "metaspace"])
def test_cutting_changes_no_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "PART", 16)
    tokenizer, draw, compared = made(kind), random.Random(0), 0
    words = ["cat", "it's", "  ", "\n", "\n\n", " \n ", " ", "!?", "1234", "\t", "é", "\r", "\u2003", "'", "the city"]
    for _ in range(400):
        text = "".join(draw.choices(words, k=draw.randint(1, 40)))
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 4)))
        pieces = [(text[a:b], b == len(text)) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
        parts = list(text_parts(iter(pieces), tokenizer.kind))
        assert "".join(part for part, _ in parts) == text
        assert [starts for _, starts in parts] == [True] + [False] * (len(parts) - 1)
        whole = kind in {"gpt2", "metaspace"}
        assert whole or max(len(part) for part, _ in parts) <= 16
        forced = kind in {"wordpiece", "bert"} and any(len(part) == 16 for part, _ in parts[:-1])
        if not forced:
            assert [index for part, _ in parts for index in tokenizer.encode(part)] == tokenizer.encode(text)
            compared += whole or len(parts) > 1
    assert compared > 100


def test_words_are_counted_across_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "PART", 6)
    monkeypatch.setattr(tokenize, "SHARD", 6)
    pieces = [("one tw", False), ("o", False), (" three\n", False), ("four ", True), ("five", True), ("six", True)]
    made_ = list(tokenize.shards(iter(pieces), "byte"))
    assert len(made_) > 2
    total = tokenize.Counts()
    for shard in made_:
        total.add(encode_shard(made("byte"), shard)[1])
    assert total.words == 6 + 1
    assert total.bytes == len("one two three\nfour fivesix")
    assert total.tokens == total.bytes + 3
    assert total.characters == "\n "


def test_words_are_those_of_split() -> None:
    assert all(chr(code).isspace() <= (code <= 0x3000) for code in range(0x110000))
    draw = random.Random(1)
    spaces = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    for _ in range(2000):
        text = "".join(draw.choices(["a", "é", "\U0001f600", "\u3001", *spaces], k=draw.randint(0, 12)))
        assert count_words(text) == len(text.split())
        assert count_words(text, inside=True) == len(("x" + text).split()) - 1
