import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from documents import jsonl, put, read, rejection

from ltc_textgen.config import DataConfig
from ltc_textgen.data import rows
from ltc_textgen.data.corpora import load_corpus
from ltc_textgen.data.rows import template_fields
from ltc_textgen.errors import UsageError


def parquet(table: dict[str, list[object]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(table), sink)
    return sink.getvalue().to_pybytes()


ROWS = [{"text": 'one\nline, "x"', "n": 1}, {"text": "zwei ü", "n": 2}, {"text": " ", "n": 3}]
TEXTS = ['one\nline, "x"', "zwei ü"]
TABLE = 'n,text\r\n1,"one\nline, ""x"""\r\n2,zwei ü\r\n3, \r\n'


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl(*ROWS)),
        ("a.NDJSON", jsonl(*ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("b.json", jsonl(*ROWS)),
        ("c.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
        ("d.json", json.dumps([row["text"] for row in ROWS])),
        ("a.csv", TABLE),
        ("b.CSV", TABLE.replace("n,", "n;").replace("1,", "1;").replace("2,", "2;").replace("3,", "3;")),
        ("a.tsv", TABLE.replace("n,", "n\t").replace("1,", "1\t").replace("2,", "2\t").replace("3,", "3\t")),
        ("a.parquet", parquet({"n": [1, 2, 3], "text": [row["text"] for row in ROWS]})),
    ],
)
def test_every_format_of_rows(tmp_path: Path, name: str, content: str | bytes, packed: str) -> None:
    assert read(put(tmp_path / f"{name}{packed}", content)) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_columns_and_templates(tmp_path: Path, name: str) -> None:
    table = {"user": ["Ann", None, "Bob"], "body": ["hi", "lost", "yo"]}
    rows_ = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    content = {
        "a.jsonl": jsonl(*rows_),
        "a.json": json.dumps(rows_),
        "a.csv": "user,body\nAnn,hi\nBob,yo\n",
        "a.parquet": parquet(table),
    }[name]
    path, counts = put(tmp_path / name, content), Counter[str]()
    assert read(path, counts, template="{user}: {body}{{}}") == ["Ann: hi{}", "Bob: yo{}"]
    assert counts["nulls"] == (name != "a.csv")
    assert read(path, column="user") == ["Ann", "Bob"]
    rejection(path, "'text'", "user", "body", "--text-column")


@pytest.mark.parametrize("template", ["none", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{a"])
def test_templates_that_are_rejected(template: str) -> None:
    with pytest.raises(UsageError) as failure:
        template_fields(template)
    assert repr(template) in str(failure.value)
    with pytest.raises(UsageError):
        load_corpus(DataConfig(data="embedded", template=template))


def test_rows_without_text(tmp_path: Path) -> None:
    path, fine = tmp_path / "rows.jsonl", {"text": "fine"}
    rejection(put(path, jsonl(fine, {"id": 1, "body": "x"})), "line 2", "'text'", "body, id", "--text-column")
    rejection(put(path, jsonl({"text": ["a"], "body": "x"})), "line 1", "list", "body")
    rejection(put(path, jsonl({"text": 3})), "line 1", "int")
    rejection(put(path, jsonl([1])), "line 1", "list")
    rejection(put(path, jsonl(fine) + '{"text": "cut'), "line 2", "JSON")
    rejection(put(path, "[" * 100_000), "line 1", "JSON")
    rejection(put(path, '{"text": ' + "9" * 5000 + "}"), "line 1", "JSON")
    counts: Counter[str] = Counter()
    assert read(put(path, jsonl(fine, {"text": None}, fine)), counts) == ["fine", "fine"]
    assert counts["nulls"] == 1


def test_a_conversation_is_rejected_with_a_way_that_works(tmp_path: Path) -> None:
    message = {"messages": [{"role": "user", "content": "Hi?"}]}
    path = put(tmp_path / "chat.jsonl", jsonl(message))
    for column in ("messages", "text"):
        said = rejection(path, column=column)
        assert ("jq" in said) == (column == "messages")
    assert "--text-column" not in rejection(path, column="messages")


def test_text_of_rows_is_normalised(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read(put(path, "\ufeff" + jsonl({"text": "a\r\nb\rc\ufeff"}) + "\ufeff" + jsonl({"text": "d\u2028e"}))) == [
        "a\nb\nc",
        "d\u2028e",
    ]
    rejection(put(path, jsonl({"text": "a\0b"})), "line 1", "NUL")
    assert read(path, errors="replace") == ["a\ufffdb"]
    assert read(path, errors="ignore") == ["ab"]
    rejection(put(path, '{"text": "a\\ud800"}'), "line 1", "surrogate", "character 1")
    assert read(path, errors="ignore") == ["a"]
    latin = jsonl({"text": "fine"}).encode() + b'{"text": "caf\xe9"}\n'
    rejection(put(path, latin), "line 2", "byte 13", "iconv")
    counts: Counter[str] = Counter()
    assert read(path, counts, errors="replace") == ["fine", "caf\ufffd"]
    assert counts["replaced"] == 1
    rejection(put(tmp_path / "t.csv", b"text\ncaf\xe9\n"), "line 2", "iconv")
    rejection(put(tmp_path / "t.json", b'["caf\xe9"]'), "iconv")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("[{}", "row 1"),
        ('["a" "b"]', "row 1"),
        ('["a",', "row 1"),
        ("[" * 5000, "row 1"),
        ('"a" x', "row 2"),
        ("[1]", "int"),
    ],
)
def test_broken_json(tmp_path: Path, content: str, fact: str) -> None:
    rejection(put(tmp_path / "a.json", content), fact)


def test_json_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_CHUNK", 7)
    texts = ["é" * 9, "two", "\U0001f600" * 4, "x" * 50]
    for content in (json.dumps(texts, ensure_ascii=False), jsonl(*({"text": text} for text in texts))):
        assert read(put(tmp_path / "a.json", content)) == texts


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_an_endless_row_is_rejected_in_bounded_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MOST_ROW", 1 << 20)
    path = put(tmp_path / name, b'{"text": "' + b"a" * (30 << 20))
    tracemalloc.start()
    try:
        rejection(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_broken_tables(tmp_path: Path) -> None:
    rejection(put(tmp_path / "a.csv", "text\na,b\n"), "line 2")
    rejection(put(tmp_path / "b.csv", 'text\n"a\n'), ".csv")
    rejection(put(tmp_path / "c.csv", "a,b\n1,2\n"), "'text'", "a, b")


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    whole = parquet({"text": ["some text"] * 1000, "n": list(range(1000))})
    put(path, whole)
    rejection(path, "'body'", "text, n", column="body")
    rejection(path, "row 1", "int", column="n")
    for content in (whole[: len(whole) // 2], b"", b"text"):
        rejection(put(path, content), "Parquet")
    packed = put(tmp_path / "b.parquet.gz", whole)
    packed.write_bytes(packed.read_bytes()[:-20])
    rejection(packed, ".gz")
    assert os.listdir(tmp_path)  # noqa: PTH208
