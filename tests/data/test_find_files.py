import os
from pathlib import Path

import pytest
from documents import jsonl, put

from ltc_textgen.config import DataConfig
from ltc_textgen.data.corpora import documents_of, load_corpus
from ltc_textgen.data.find_files import corpus_files, size_text
from ltc_textgen.errors import DataError, UsageError


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    put(tmp_path / "b.TXT", b"3")
    put(tmp_path / "a" / "z.txt", b"1")
    put(tmp_path / "a.md", b"2")
    put(tmp_path / "c.jsonl.gz", jsonl({"text": "4"}))
    for ignored in (".hidden.txt", ".git/x.txt", "image.png"):
        put(tmp_path / ignored, b"no")
    put(tmp_path / "blank.txt", b" \n")
    assert [*documents_of(tmp_path, DataConfig())] == ["2", "1", "3", "4"]
    said: list[str] = []
    load_corpus(DataConfig(data=str(tmp_path)), said.append)
    assert len(said) == 1
    assert "image.png" in said[0]
    for n in range(6):
        put(tmp_path / f"scan{n}.webp", b"RIFF")
    load_corpus(DataConfig(data=str(tmp_path / "a.md"), valid=str(tmp_path)), said.append)
    assert len(said) == 2
    assert "7 files" in said[1]
    assert "scan3.webp" in said[1]
    assert "scan5.webp" not in said[1]


def test_a_folder_of_which_most_would_be_skipped_is_rejected(tmp_path: Path) -> None:
    put(tmp_path / "notes.txt", b"word " * 1000)
    put(tmp_path / "code.py", b"import this\n" * 3000)
    with pytest.raises(DataError) as failure:
        load_corpus(DataConfig(data=str(tmp_path)))
    assert all(fact in str(failure.value) for fact in ("5 kB", "41 kB", "code.py", "--include '*.txt'", "'*.py'"))
    only = load_corpus(DataConfig(data=str(tmp_path), include=("*.txt",)))
    assert "".join(only.documents("whole")) == "word " * 1000
    both = load_corpus(DataConfig(data=str(tmp_path), include=["*.PY", "notes.*"]))
    assert len(list(both.documents("whole"))) == 2
    put(tmp_path / "code.py", b"short")
    assert len(corpus_files(tmp_path)) == 1


def test_patterns(tmp_path: Path) -> None:
    for name in ("a.txt", "sub/a.txt", "sub/b.log", "sub/deep/c.log"):
        put(tmp_path / name, b"text")

    def found(*include: str) -> list[str]:
        return [file.relative_to(tmp_path).as_posix() for file in corpus_files(tmp_path, include=include)]

    assert found("*.log") == ["sub/b.log", "sub/deep/c.log"]
    assert found("sub/*.txt", "./a.txt") == ["a.txt", "sub/a.txt"]
    with pytest.raises(DataError, match=r"\*\.csv"):
        found("*.csv")
    with pytest.raises(UsageError, match="--include"):
        load_corpus(DataConfig(data=str(tmp_path / "a.txt"), include="*.txt"))
    with pytest.raises(UsageError, match="--include"):
        load_corpus(DataConfig(data="embedded", include="*.txt"))
    put(tmp_path / "z.zip", b"PK")
    with pytest.raises(DataError, match="zip"):
        load_corpus(DataConfig(data=str(tmp_path), include="*.zip"))


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "book.txt", b"linked")
    put(tmp_path / "corpus" / "own.txt", b"own")
    (tmp_path / "corpus" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path / "corpus")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    (tmp_path / "corpus" / "dead.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "corpus" / "pipe.txt")
    assert sorted(documents_of(tmp_path / "corpus", DataConfig())) == ["linked", "own"]


def test_several_files_and_folders_are_read_in_the_order_given(tmp_path: Path) -> None:
    put(tmp_path / "z.txt", b"first")
    put(tmp_path / "folder" / "a.txt", b"second")
    put(tmp_path / "folder" / "b.txt", b"third")
    paths = [str(tmp_path / "z.txt"), str(tmp_path / "folder")]
    corpus = load_corpus(DataConfig(data=paths))
    assert list(corpus.documents("whole")) == ["first", "second", "third"]
    assert all(path in corpus.name for path in paths)
    assert load_corpus(DataConfig(data=paths[::-1])).fingerprint != corpus.fingerprint
    assert DataConfig(data=paths[:1]).data == paths[0]
    assert list(documents_of([Path(path) for path in paths], DataConfig())) == ["first", "second", "third"]
    for wrong in ("wikitext-2", str(tmp_path / "none")):
        with pytest.raises(DataError, match=wrong):
            load_corpus(DataConfig(data=[*paths, wrong]))
    with pytest.raises(UsageError, match=r"z\.txt.*twice"):
        DataConfig.parse({"data": [paths[0], paths[0]]})


def test_sizes_in_words() -> None:
    assert [size_text(size) for size in (0, 999, 5000, 30_100_000, 2 * 10**12)] == [
        "0 bytes",
        "999 bytes",
        "5 kB",
        "30.1 MB",
        "2 TB",
    ]
