"""Large data sets of the hub: streamed once, kept as text, taken up again."""

import io
import json
import os
import shutil
import threading

import pyarrow
import pyarrow.parquet
import pytest
from filelock import FileLock
from hub import Hub

from ltc_textgen.config import DataConfig
from ltc_textgen.data import hub as library
from ltc_textgen.data import hub_stream
from ltc_textgen.data.corpora import load_corpus
from ltc_textgen.errors import DataError

NAME = "someone/large"
FILES = 3
ROWS = 70


def texts(file: int) -> list[str | None]:
    rows: list[str | None] = [f"Row {n} of file {file}, é.\r\n" + "words and " * (n % 7) for n in range(ROWS)]
    rows[5], rows[6] = None, " "
    return rows


def parquet(rows: list[str | None]) -> bytes:
    sink = io.BytesIO()
    table = pyarrow.table({"body": pyarrow.array(rows, pyarrow.string()), "noise": [os.urandom(400) for _ in rows]})
    pyarrow.parquet.write_table(table, sink, row_group_size=25)
    return sink.getvalue()


@pytest.fixture
def large(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(hub_stream, "CHUNK", 1500)
    monkeypatch.setattr(hub_stream, "ROWS", 10)
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
    card += "  - split: validation\n    path: data/valid-*\n  - split: odd\n    path: data/odd-*\n---\n"
    files = {f"data/train-{n}.parquet": parquet(texts(n)) for n in range(FILES)}
    files |= {"data/valid-0.parquet": parquet(texts(90)), "data/odd-0.parquet": parquet(texts(91))}
    hub.add("datasets", NAME, {"README.md": card.encode(), **files})
    return hub


def files_asked_for(hub: Hub) -> set[str]:
    return {path.rpartition("/")[2] for path, _, _ in hub.ranges}


@pytest.mark.slow
def test_the_text_is_kept_once_and_then_needs_no_hub(large: Hub) -> None:
    config = DataConfig(data=NAME, text_column="body", streaming="always")
    corpus = load_corpus(config)
    expected = [text.replace("\r\n", "\n") for n in range(FILES) for text in texts(n) if text and text.strip()]
    assert list(corpus.train()) == expected
    assert len(list(corpus.valid())) == ROWS - 2
    assert corpus.size("train") == sum(len(text.encode()) for n in range(FILES) for text in texts(n) if text)
    assert not (hub_stream.cache_directory().parent / "huggingface" / "datasets" / "someone___large").exists()
    assert "odd-0.parquet" not in files_asked_for(large)
    large.mode = "failing"
    large.requests.clear()
    for mode in ("always", "auto"):
        again = load_corpus(config.model_copy(update={"streaming": mode}))
        assert again.fingerprint == corpus.fingerprint
    assert large.requests == []


def test_an_interrupted_stream_resumes_and_reads_no_file_twice(large: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_stream.stream(NAME, "body")
    whole = hub_stream.kept_whole(NAME, "body")
    assert whole is not None
    folder = hub_stream.text_directory(NAME, "body")
    assert len(whole["train"].digests) > 4
    rows = list(whole["train"].texts())
    shutil.rmtree(folder)

    original, done = hub_stream._keep, []

    def interrupted(*arguments: object) -> None:
        original(*arguments)
        done.append(1)
        if len(done) == len(whole["train"].digests) - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(hub_stream, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub_stream.stream(NAME, "body")
    assert hub_stream.kept_whole(NAME, "body") is None
    there = hub_stream.kept(NAME, "body")["train"]
    assert 2 * ROWS < there.rows < 3 * ROWS
    (folder / "train-00099.tmp").write_bytes(b"half")
    monkeypatch.setattr(hub_stream, "_keep", original)
    large.ranges.clear()
    hub_stream.stream(NAME, "body")
    # The first file has the columns; the one before the place may be opened to find it, but no other is read again.
    asked = files_asked_for(large)
    assert {"train-2.parquet", "valid-0.parquet"} <= asked
    assert len([1 for path, _, _ in large.ranges if path.endswith("train-0.parquet")]) == 1
    again = hub_stream.kept_whole(NAME, "body")
    assert again is not None
    assert list(again["train"].texts()) == rows
    assert again["train"].rows == whole["train"].rows == 3 * ROWS


def test_what_is_taken_up_is_the_revision_that_was_begun(large: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[str] = []
    original = datasets.load_dataset

    def load(*given: object, **how: object) -> object:
        asked.append(str(how["revision"]))
        return original(*given, **how)

    def begin(splits: dict[str, hub_stream.KeptSplit], name: str, *_: object) -> None:
        hub_stream._keep(splits, splits[name], [], 0, None)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_stream, "_stream_split", begin)
    hub_stream.stream(NAME, "body")
    large.files["datasets", NAME]["more.txt"] = b"a later commit"
    hub_stream.stream(NAME, "body")
    shutil.rmtree(hub_stream.text_directory(NAME, "body"))
    hub_stream.stream(NAME, "body")
    first, again, anew = asked
    assert first == again != anew
    assert {len(revision) for revision in asked} == {40}


def test_of_several_processes_one_streams_and_the_others_wait(large: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_stream, "WAIT", 0.02)
    folder = hub_stream.text_directory(NAME, "body")
    folder.parent.mkdir(parents=True)
    alive = threading.Event()
    second = threading.Thread(target=hub_stream.stream, args=(NAME, "body", alive.set))
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        second.start()
        assert alive.wait(20), "whoever watches it must not take it for dead"
        assert large.requests == []
        hub_stream._stream(NAME, "body", lambda: None)
        large.requests.clear()
    second.join(20)
    assert large.requests == [], "what the first has made is used"
    assert hub_stream.kept_whole(NAME, "body") is not None


def test_size_decides(large: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(map(len, large.files["datasets", NAME].values()))
    monkeypatch.setattr(hub_stream, "LARGE", size)
    assert hub_stream.is_large(NAME)
    kept = library._load_text(NAME, "body")
    assert isinstance(kept["train"], hub_stream.KeptSplit)
    shutil.rmtree(hub_stream.text_directory(NAME, "body"))
    monkeypatch.setattr(hub_stream, "LARGE", size + 1)
    assert not hub_stream.is_large(NAME)
    assert not isinstance(library._load_text(NAME, "body")["train"], hub_stream.KeptSplit)
    assert not hub_stream.text_directory(NAME, "body").exists()


@pytest.mark.slow
def test_what_is_wrong_with_a_column(large: Hub) -> None:
    with pytest.raises(DataError, match=r"'text'.*body, noise.*--text-column"):
        load_corpus(DataConfig(data=NAME, streaming="always"))
    with pytest.raises(DataError, match="'noise'.* bytes"):
        hub_stream.stream(NAME, "noise")


def test_kept_text_that_is_damaged_is_rejected(large: Hub) -> None:
    hub_stream.stream(NAME, "body")
    whole = hub_stream.kept_whole(NAME, "body")
    assert whole is not None
    first = whole["train"].path(0)
    shutil.copy(whole["train"].path(1), first)
    with pytest.raises(DataError, match=f"{first.name}.*checksum"):
        list(whole["train"].texts())
    first.unlink()
    with pytest.raises(DataError, match=r"train-00000.parquet"):
        list(whole["train"].texts())
    (first.parent / hub_stream.FACTS).write_text(json.dumps([1]))
    assert hub_stream.kept_whole(NAME, "body") is None
