"""Files of text for tests, and what is read out of them."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pytest

from ltc_textgen.data.text_files import Reading, read_chunks
from ltc_textgen.errors import DataError

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def put(path: Path, content: bytes | str) -> Path:
    """Write a file, packed if its suffix says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(PACK.get(path.suffix.lower(), bytes)(data))
    return path


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path, counts: Counter[str] | None = None, **options: str) -> list[str]:
    """The documents of a file, each whole."""
    documents, parts = [], []
    for text, ends in read_chunks(path, Reading(**options, counts=Counter() if counts is None else counts)):
        parts.append(text)
        if ends:
            documents.append("".join(parts))
            parts = []
    assert not parts
    return documents


def rejection(path: Path, *facts: object, **options: str) -> str:
    """The message with which a file is rejected: one line with its path and the given facts."""
    with pytest.raises(DataError) as failure:
        read(path, **options)
    message = str(failure.value)
    assert failure.value.exit_code == 3
    assert message.startswith(str(path))
    assert "\n" not in message
    for fact in facts:
        assert str(fact) in message
    return message
