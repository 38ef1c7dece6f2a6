import gzip
import os
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import jsonl, put, read, rejection

from ltc_textgen.config import DataConfig
from ltc_textgen.data import text_files
from ltc_textgen.data.corpora import load_corpus
from ltc_textgen.data.text_files import Chunk, content_note, read_chunks, skip_blank
from ltc_textgen.errors import DataError


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".GZ"])
def test_plain_text_also_packed(tmp_path: Path, suffix: str) -> None:
    text = "Zwei Wörter\n\nmore"
    assert read(put(tmp_path / f"a.txt{suffix}", text)) == [text]
    assert read(put(tmp_path / f"A.MD{suffix}", text)) == [text]


def test_marks_and_line_ends(tmp_path: Path) -> None:
    assert read(put(tmp_path / "bom.txt", b"\xef\xbb\xbfab\r\ncd\re\xef\xbb\xbff")) == ["ab\ncd\nef"]
    assert read(put(tmp_path / "end.txt", b"ab\r")) == ["ab\n"]
    # A character, a mark and a line end that lie across two chunks of the reader.
    x = b"x" * ((1 << 20) - 1)
    assert read(put(tmp_path / "chunk.txt", x + b"\r\nz")) == [x.decode() + "\nz"]
    assert read(put(tmp_path / "wide.txt", x + "é".encode())) == [x.decode() + "é"]
    assert read(put(tmp_path / "mark.txt", x + b"\xef\xbb\xbfz")) == [x.decode() + "z"]
    counts: Counter[str] = Counter()
    assert read(put(tmp_path / "mac.txt", b"a\rb\r\nc\r"), counts) == ["a\nb\nc\n"]
    assert counts["carriage_returns"] == 2


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = put(tmp_path / "latin.txt", "Das Café öffnet für jeden schönen Tag".encode("cp1252"))
    rejection(path, "byte 7", "iconv -f WINDOWS-1252", "--encoding-errors")
    counts: Counter[str] = Counter()
    assert read(path, counts, errors="replace")[0].count("\ufffd") == counts["replaced"] == 4
    assert read(path, counts, errors="ignore") == ["Das Caf ffnet fr jeden schnen Tag"]
    assert counts["ignored"] == 4
    rejection(put(tmp_path / "late.txt", b"a" * (3 << 20) + b"\xc3b"), f"byte {3 << 20}")
    rejection(put(tmp_path / "split.txt", b"a" * ((1 << 20) - 1) + b"\xc3b"), f"byte {(1 << 20) - 1}")
    rejection(put(tmp_path / "packed.txt.gz", b"a\xff"), "byte 1 of the unpacked text")
    rejection(put(tmp_path / "cut.txt", b"ab\xc3"), "byte 2")
    split = put(tmp_path / "split-replaced.txt", b"a" * ((1 << 20) - 1) + "é".encode() + b"\xff" + "\ufffd".encode())
    counts.clear()
    read(split, counts, errors="replace")
    assert counts["replaced"] == 1


def test_nul(tmp_path: Path) -> None:
    path = put(tmp_path / "nul.txt", b"some text\x00 and more of it, so that it is no binary file")
    rejection(path, "NUL", "byte 9")
    counts: Counter[str] = Counter()
    assert read(path, counts, errors="replace")[0].startswith("some text\ufffd and")
    assert read(path, counts, errors="ignore")[0].startswith("some text and")
    assert counts["nul"] == 2


@pytest.mark.parametrize(
    ("damage", "packed"), [("cut", ".gz"), ("cut", ".bz2"), ("cut", ".xz"), ("plain", ".gz"), ("plain", ".xz")]
)
def test_a_damaged_packed_file(tmp_path: Path, damage: str, packed: str) -> None:
    path = put(tmp_path / f"a.txt{packed}", os.urandom(5000).hex())
    path.write_bytes(path.read_bytes()[:-30] if damage == "cut" else b"plain text")
    rejection(path, packed)


def test_blank_documents_are_left_out_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks: list[Chunk] = [(" ", False), ("\n", True), ("", True), (" ", False), ("a", False), (" ", True)]
    assert list(skip_blank(iter(chunks), "here")) == [(" a", False), (" ", True)]
    monkeypatch.setattr(text_files, "MOST_BLANK", 1 << 22)
    path = tmp_path / "blank.txt.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(40):
            file.write(b" " * (1 << 20))
        file.write(b"x")
    tracemalloc.start()
    try:
        rejection(path, "blank")
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n ", b"\xef\xbb\xbf"])
def test_no_text(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "a.txt", content)
    for where in (path, tmp_path):
        with pytest.raises(DataError) as failure:
            load_corpus(DataConfig(data=str(where)))
        assert str(where) in str(failure.value)


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    for name, fact in {
        str(tmp_path / "no.txt"): "no.txt",
        "missing.txt": "missing.txt",
        "wikitxt-2": "'wikitext-2'",
        "/dev/null": "a device",
        str(tmp_path / "pipe.txt"): "a named pipe",
        str(tmp_path): "no text",
    }.items():
        with pytest.raises(DataError) as failure:
            load_corpus(DataConfig(data=name))
        assert fact in str(failure.value)
        assert "\n" not in str(failure.value)


def test_text_that_looks_like_another_format_is_noted(tmp_path: Path) -> None:
    page = put(tmp_path / "page.txt", "<!DOCTYPE html><html><p>Text</p>\n")
    rows = put(tmp_path / "rows.txt.gz", jsonl({"text": "a"}, {"text": "b"}))
    assert "HTML" in (content_note(page) or "")
    assert ".jsonl" in (content_note(rows) or "")
    assert content_note(put(tmp_path / "prose.txt", "One, two.\nThree.\n")) is None
    assert content_note(put(tmp_path / "rows.jsonl", jsonl({"text": "a"}))) is None
    said: list[str] = []
    load_corpus(DataConfig(data=str(page), text_column="body"), said.append)
    assert len(said) == 2
    assert "--text-column" in said[0]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder in a place that everybody reaches, while this process is nobody: root may read everything."""
    folder = Path("/tmp") / f"ltc-unreadable-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")
def test_what_may_not_be_read(unprivileged: Path) -> None:
    file = put(unprivileged / "sub" / "a.txt", b"text")
    file.chmod(0)
    with pytest.raises(DataError, match=r"a\.txt.*Permission denied"):
        load_corpus(DataConfig(data=str(unprivileged)))
    file.parent.chmod(0)
    with pytest.raises(DataError, match=r"sub.*Permission denied"):
        load_corpus(DataConfig(data=str(unprivileged)))


def test_one_endless_line_is_read_in_little_memory(tmp_path: Path) -> None:
    size = 60_000_000
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(60):
            file.write(b"word " * 200_000)
    tracemalloc.start()
    try:
        characters = sum(len(text) for text, _ in read_chunks(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert characters == size
    assert peak < 16 << 20


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    put(Path(name), b"some text to read")
    for where in (Path(name), tmp_path):
        assert list(load_corpus(DataConfig(data=str(where))).documents("whole")) == ["some text to read"]
