import gzip
import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ltc_textgen.config import DataConfig
from ltc_textgen.data.corpora import documents_of, load_corpus
from ltc_textgen.data.text_files import corpus_files, read_pieces
from ltc_textgen.errors import DataError


def read(path: Path, **options: str) -> list[str]:
    documents, parts = [], []
    for text, ends in read_pieces(path, **options):
        parts.append(text)
        if ends:
            documents.append("".join(parts))
            parts = []
    assert not parts
    return documents


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(DataError) as failure:
        read(path, **options)
    message = str(failure.value)
    assert failure.value.exit_code == 3
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_each_kind_of_file(tmp_path: Path, suffix: str) -> None:
    assert read(put(tmp_path / f"a.txt{suffix}", "Zwei Wörter\n\nmore".encode())) == ["Zwei Wörter\n\nmore"]
    rows = jsonl({"text": "one\nline", "id": 1}, {"id": 2, "text": "zwei ü"}) + b"\n" + jsonl({"text": " "})
    assert read(put(tmp_path / f"b.jsonl{suffix}", rows)) == ["one\nline", "zwei ü"]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "body": ["p", "", "q\r\nr"]}), sink)
    parquet = put(tmp_path / f"c.parquet{suffix}", sink.getvalue().to_pybytes())
    assert read(parquet, column="body") == ["p", "q\nr"]


def test_marks_and_line_ends(tmp_path: Path) -> None:
    assert read(put(tmp_path / "bom.txt", b"\xef\xbb\xbfab\r\ncd\re\xef\xbb\xbf")) == ["ab\ncd\re\ufeff"]
    assert read(put(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + jsonl({"text": "a\r\nb"}))) == ["a\nb"]
    assert read(put(tmp_path / "end.txt", b"ab\r")) == ["ab\r"]
    # A character and a line end that lie across two chunks of the reader.
    assert read(put(tmp_path / "chunk.txt", b"x" * ((1 << 20) - 1) + b"\r\nz")) == ["x" * ((1 << 20) - 1) + "\nz"]
    assert read(put(tmp_path / "wide.txt", b"x" * ((1 << 20) - 1) + "é".encode())) == ["x" * ((1 << 20) - 1) + "é"]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = put(tmp_path / "latin.txt", "café".encode("latin-1"))
    assert "not UTF-8 at byte 3; " in refusal(path)
    assert "--encoding-errors replace or ignore" in refusal(path)
    assert read(path, encoding_errors="replace") == ["caf\ufffd"]
    assert read(path, encoding_errors="ignore") == ["caf"]
    late = b"a" * (3 << 20) + b"\xc3" + b"b"
    assert f"at byte {3 << 20}; " in refusal(put(tmp_path / "late.txt", late))
    split = b"a" * ((1 << 20) - 1) + b"\xc3" + b"b"
    assert f"at byte {(1 << 20) - 1}; " in refusal(put(tmp_path / "split.txt", split))
    assert "at byte 1 of the unpacked text" in refusal(put(tmp_path / "packed.txt.gz", b"a\xff"))
    assert "at byte 2; " in refusal(put(tmp_path / "cut.txt", b"ab\xc3"))
    rows = jsonl({"text": "fine"}) + b'{"text": "caf\xe9"}\n'
    assert ", line 2: not UTF-8 at byte 13 of the line" in refusal(put(tmp_path / "rows.jsonl", rows))
    assert read(tmp_path / "rows.jsonl", encoding_errors="replace") == ["fine", "caf\ufffd"]


def test_nul(tmp_path: Path) -> None:
    path = put(tmp_path / "nul.txt", b"some text\x00 and more of it, so that it is no binary file")
    assert "NUL byte at byte 9" in refusal(path)
    assert read(path, encoding_errors="replace")[0].startswith("some text\ufffd and")
    assert read(path, encoding_errors="ignore")[0].startswith("some text and")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("text".encode("utf-16"), "UTF-16 text (convert it"),
        (b"PK\x03\x04....", "a zip archive"),
        (gzip.compress(b"text", mtime=0), "a gzip archive"),
        (bytes(range(256)) * 20, "looks binary"),
        (b"\x00" * 5000, "looks binary"),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_binary_files_are_refused(tmp_path: Path, content: bytes, what: str, errors: str) -> None:
    assert what in refusal(put(tmp_path / "a.txt", content), encoding_errors=errors)
    assert what in refusal(put(tmp_path / "a.jsonl", content), encoding_errors=errors)


def test_rows_without_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    fine = {"text": "fine"}
    assert "line 2: no field 'text' (fields: body, id); choose one with --text-column" in refusal(
        put(path, jsonl(fine, {"id": 1, "body": "x"}))
    )
    assert "line 3: field 'text' is NoneType, not text" in refusal(put(path, jsonl(fine, fine, {"text": None})))
    assert "line 1: field 'text' is list, not text" in refusal(put(path, jsonl({"text": ["a"]})))
    assert "line 1: expected a JSON object with a field 'text', got str" in refusal(put(path, jsonl("text")))
    assert "line 2: not JSON" in refusal(put(path, jsonl(fine) + b'{"text": "cut'))
    assert "line 1: not JSON" in refusal(put(path, b"[" * 100_000))
    assert "line 1: half of a surrogate pair at character 1" in refusal(put(path, b'{"text": "a\\ud800"}'))
    assert read(path, encoding_errors="ignore") == ["a"]


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some text"] * 1000, "n": list(range(1000))}), path)
    whole = path.read_bytes()
    assert "no column 'body' (columns: text, n)" in refusal(path, column="body")
    assert "row 1: 'n' is int, not text" in refusal(path, column="n")
    for content in (whole[: len(whole) // 2], b"", b"text"):
        assert "truncated, or no Parquet file" in refusal(put(path, content))
    packed = put(tmp_path / "b.parquet.gz", whole)
    packed.write_bytes(packed.read_bytes()[:-20])
    assert "truncated or damaged gzip file" in refusal(packed)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    assert "row 2: 'text' is NoneType, not text" in refusal(path)


def test_broken_gzip(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt.gz", os.urandom(5000).hex().encode())
    path.write_bytes(path.read_bytes()[:-30])
    assert "truncated or damaged gzip file" in refusal(path)
    path.write_bytes(b"plain text")
    assert "truncated or damaged gzip file" in refusal(path)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    put(tmp_path / "b.txt", b"3")
    put(tmp_path / "a" / "z.txt", b"1")
    put(tmp_path / "a.txt", b"2")
    put(tmp_path / "c.jsonl.gz", jsonl({"text": "4"}))
    for ignored in (".hidden.txt", ".git/x.txt", "readme.md", "image.png"):
        put(tmp_path / ignored, b"no")
    put(tmp_path / "blank.txt", b" \n")
    documents = documents_of(tmp_path, DataConfig())
    assert [*documents] == ["2", "1", "3", "4"]
    said: list[str] = []
    load_corpus(DataConfig(data=str(tmp_path)), said.append)
    kinds = ".txt, .jsonl, .parquet and the same with .gz"
    assert said == [f"{tmp_path}: skipped 2 files of other kinds than {kinds}: image.png, readme.md"]
    for n in range(6):
        put(tmp_path / f"scan{n}.pdf", b"%PDF")
    load_corpus(DataConfig(data=str(tmp_path / "b.txt"), valid=str(tmp_path)), said.append)
    assert said[1].endswith(
        "skipped 8 files of other kinds than " + kinds + ": image.png, readme.md, scan0.pdf, scan1.pdf, scan2.pdf, …"
    )
    assert len(said) == 2
    assert [file.name for file in corpus_files(tmp_path)] == ["a.txt", "z.txt", "b.txt", "blank.txt", "c.jsonl.gz"]


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n ", b"\xef\xbb\xbf"])
def test_no_text(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "a.txt", content)
    for where in (path, tmp_path):
        with pytest.raises(DataError, match="no text in it: empty, or nothing but blanks"):
            load_corpus(DataConfig(data=str(where)))


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in {
        str(tmp_path / "no.txt"): "no.txt: no such file or folder",
        str(tmp_path): r"no text in this folder; looked for .txt, .jsonl, .parquet",
        "missing.txt": "missing.txt: no such file or folder",
        "wikitxt-2": "no corpus of that name .did you mean 'wikitext-2'",
        "/dev/null": "neither a file nor a folder",
        "a\0b": r"a.x00b': no such file or folder",
    }.items():
        with pytest.raises(DataError, match=message) as failure:
            load_corpus(DataConfig(data=name))
        assert "\n" not in str(failure.value)


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
    with pytest.raises(DataError, match=r"a.txt: cannot be read \(Permission denied\)"):
        load_corpus(DataConfig(data=str(unprivileged)))
    file.parent.chmod(0)
    with pytest.raises(DataError, match=r"sub: cannot be read \(Permission denied\)"):
        load_corpus(DataConfig(data=str(unprivileged)))


def test_one_endless_line_is_read_in_little_memory(tmp_path: Path) -> None:
    size = 100_000_000
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"word " * 200_000)
    tracemalloc.start()
    try:
        characters = sum(len(text) for text, _ in read_pieces(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert characters == size
    assert peak < 16 << 20
