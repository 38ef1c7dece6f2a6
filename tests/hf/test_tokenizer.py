"""The tokenizer of a run in transformers: as that of the package, with a warning about what it does not know."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from datasets.fingerprint import Hasher
from transformers import AutoTokenizer

from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer
from ltc_textgen.hf.config import LTCConfig
from ltc_textgen.hf.tokenizer import LTCTokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    character_tokenizer("The sea").save(tmp_path)
    LTCConfig(input_size=8, hidden_size=4).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("The sea", ""),
        ("Zü?", "Zü?"),
        (["The", "Züe"], "Zü"),
        (("The", "ü?"), "ü?"),
        ("The<|separator|>&", "&"),
    ],
)
def test_unknown_characters_are_named_once(directory: Path, text: object, unknown: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert isinstance(tokenizer, LTCTokenizer)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            tokenizer(text, is_split_into_words=isinstance(text, tuple))
    assert len(found) == bool(unknown)
    if unknown:
        assert str(found[0].message).endswith(": " + ", ".join(map(repr, unknown)))


def test_ids_are_those_of_the_package(directory: Path) -> None:
    tokenizer, own = AutoTokenizer.from_pretrained(directory), TextTokenizer.load(directory)
    with pytest.warns(UserWarning, match="'Z'"):
        assert tokenizer("The Zsea").input_ids == own.encode("The Zsea")
    with pytest.warns(UserWarning, match="'é'"):
        assert tokenizer.encode("é") == own.encode("é")


def test_a_digest_of_it_does_not_depend_on_what_it_read(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer("The sea")
    before = Hasher.hash(tokenizer)
    with pytest.warns(UserWarning, match="'Z'"):
        tokenizer("Z")
    assert Hasher.hash(tokenizer) == before
    assert isinstance(pickle.loads(pickle.dumps(tokenizer)), LTCTokenizer)


def test_bytes_know_everything(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path)
    LTCConfig(input_size=257, hidden_size=4).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert AutoTokenizer.from_pretrained(tmp_path)("ü海").input_ids == list("ü海".encode())


@pytest.mark.slow
def test_it_loads_without_the_package(directory: Path) -> None:
    code = f"from transformers import AutoTokenizer as A; print(A.from_pretrained({str(directory)!r})('The').input_ids)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == str(TextTokenizer.load(directory).encode("The"))
