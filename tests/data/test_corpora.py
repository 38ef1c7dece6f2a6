import ast
import inspect
import re
from pathlib import Path

import pytest

from ltc_textgen.config import DataConfig
from ltc_textgen.data import corpora, python_docs
from ltc_textgen.data.corpora import CHARACTER_LIMIT, load_corpus
from ltc_textgen.data.python_docs import clean_text, embedded_documents, embedded_fingerprint
from ltc_textgen.errors import DataError, UsageError


def corpus_of(tmp_path: Path, *texts: str, **options: object) -> object:
    for number, text in enumerate(texts):
        (tmp_path / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return load_corpus(DataConfig(data=str(tmp_path), **options))


def test_one_text_is_cut_as_nanogpt_does(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + n) for n in range(1234))
    corpus = corpus_of(tmp_path, text)
    assert list(corpus.train()) == [text[: int(1234 * 0.9)]]
    assert list(corpus.valid()) == [text[int(1234 * 0.9) :]]


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.999, *(characters / 98 for characters in (1, 12, 13, 57, 58, 59))])
def test_several_texts_are_cut_by_characters(tmp_path: Path, fraction: float) -> None:
    texts = ["one" * 7, "zwei" * 5, "drei!" * 9, "vier" * 3]
    corpus = corpus_of(tmp_path, *texts, valid_fraction=fraction)
    whole = "".join(texts)
    train, valid = list(corpus.train()), list(corpus.valid())
    assert "".join(train) == whole[: int(len(whole) * (1 - fraction))]
    assert "".join(train + valid) == whole
    assert set(train[:-1] + valid[1:]) <= set(texts)


@pytest.mark.parametrize(("most", "held"), [(30, 30), (49, 49), (50, 50), (51, 50), (5_000_000, 50)])
def test_no_more_than_so_many_characters_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, held: int
) -> None:
    monkeypatch.setattr(corpora, "HELD_OUT", most)
    text = "".join(chr(0x61 + n % 26) for n in range(500))
    corpus = corpus_of(tmp_path, text)
    assert list(corpus.train()) == [text[: 500 - held]]
    assert list(corpus.valid()) == [text[500 - held :]]
    assert (corpus.size("train"), corpus.size("valid")) == (500 - held, held)


def test_another_text_to_validate_on(tmp_path: Path) -> None:
    other = tmp_path / "other" / "v.txt"
    other.parent.mkdir()
    other.write_text("validation")
    (tmp_path / "t.txt").write_text("training")
    config = DataConfig(data=str(tmp_path / "t.txt"), valid=str(other))
    corpus = load_corpus(config)
    assert list(corpus.train()) == ["training"]
    assert list(corpus.valid()) == ["validation"]
    other.write_text("Validation")
    assert load_corpus(config).fingerprint != corpus.fingerprint
    with pytest.raises(DataError, match=r"none\.txt"):
        load_corpus(config.model_copy(update={"valid": str(tmp_path / "none.txt")}))


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path, moved = tmp_path / "a.txt", tmp_path / "elsewhere.txt"
    path.write_text("some text")
    moved.write_text("some text")
    seen = {load_corpus(DataConfig(data=str(p))).fingerprint for p in (path, path, moved)}
    assert len(seen) == 1
    path.write_text("some texT")
    seen.add(load_corpus(DataConfig(data=str(path))).fingerprint)
    for change in ({"valid_fraction": 0.2}, {"encoding_errors": "ignore"}):
        seen.add(load_corpus(DataConfig(data=str(moved), **change)).fingerprint)
    assert len(seen) == 4


def test_the_default_tokenizer_goes_by_the_amount_of_text(tmp_path: Path) -> None:
    assert corpus_of(tmp_path, "short").default_tokenizer() == "char"
    long = "words " * (CHARACTER_LIMIT // 6 + 10)
    assert corpus_of(tmp_path, long, valid_fraction=1e-9).default_tokenizer() == "wordpiece"
    assert corpus_of(tmp_path, long).default_tokenizer() == "char"


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="test"):
        corpus_of(tmp_path, "text").test()


@pytest.mark.slow
def test_the_embedded_corpus_is_prose_and_always_the_same() -> None:
    documents = embedded_documents()
    text = "\n".join(documents)
    assert 1_200_000 < len(text) < 3_000_000
    assert len(set(documents)) == len(documents)
    assert min(map(len, documents)) >= 60
    letters = sum(c.isalpha() or c.isspace() for c in text)
    assert letters / len(text) > 0.93
    assert not re.search(r"^\s*>>>", text, re.MULTILINE)
    corpus = load_corpus(DataConfig(data="embedded"))
    assert corpus.default_tokenizer() == "wordpiece"
    assert len("".join(corpus.valid())) == pytest.approx(len("".join(documents)) / 10, abs=1)


@pytest.mark.slow
def test_the_embedded_corpus_follows_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    files = python_docs.source_files()
    some = [*files[:20], Path(ast.__file__)]
    monkeypatch.setattr(python_docs, "source_files", lambda: some)
    assert embedded_documents.__wrapped__() == embedded_documents.__wrapped__()
    assert any("abstract syntax" in text.lower() for text in embedded_documents.__wrapped__())
    fingerprint = embedded_fingerprint()
    assert fingerprint == embedded_fingerprint()
    some.pop()
    assert fingerprint != embedded_fingerprint()


def test_cleaning_keeps_prose() -> None:
    docstring = """Return the *sum* of ``a`` and :func:`b`.

    It works like this::

        >>> add(1, 2)
        3

    ======  ======
    | 1 |   | 2 |
    ======  ======

        stmt: "if" x ":" suite
        for x in range(10):
            print(x)

    The end of
       the text.
    """
    assert clean_text(inspect.cleandoc(docstring)) == (
        "Return the sum of a and b.\n\nIt works like this:\n\nThe end of\nthe text."
    )
