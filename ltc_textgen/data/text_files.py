"""Documents out of files in bounded memory: plain text, JSON, JSON lines, CSV, TSV and Parquet, also packed.

A document arrives as one or more chunks `(text, ends)`; `ends` is True for the last. A plain text file is one document
and arrives in chunks of about a mebibyte, so that neither a large file nor one endless line is held in memory.
Whatever is no text is rejected in one line that names the file and the byte, line or row.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ltc_textgen.data.find_files import kind_of, unpacked_name
from ltc_textgen.data.normalize import REPLACEMENT, StreamNormalizer
from ltc_textgen.data.sniff import likely_encoding, looks_like, not_text, not_text_by_name
from ltc_textgen.errors import DataError
from ltc_textgen.io.hashing import sha256_file
from ltc_textgen.io.paths import os_reason, special_file

Chunk = tuple[str, bool]

MOST_BLANK = 1 << 24
"""Characters of blank text at the start of a document, after which it is rejected instead of held in memory."""

_CHUNK = 1 << 20
_SNIFF = 1 << 13
_UNPACK_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        column: Field of a row that holds its text.
        template: Text of a row with its fields in braces, as "{user}: {message}"; None: the column alone.
        errors: What to do with bytes that are not UTF-8, and with NUL: strict rejects, replace writes U+FFFD, ignore
            leaves them out.
        counts: What is changed or left out in reading; see `normalize.describe_changes`.
    """

    column: str = "text"
    template: str | None = None
    errors: str = "strict"
    counts: Counter[str] = field(default_factory=Counter)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        DataError: If it cannot be read.
    """
    with explaining(path):
        return sha256_file(path)


def read_chunks(path: Path, reading: Reading | None = None) -> Iterator[Chunk]:
    """The documents of one file.

    Args:
        path: A file of rows (by its suffix) has a document a row; any other is text, and one document.
        reading: How to read it; the defaults if None.

    Raises:
        DataError: While reading, if the file is no such text.
    """
    from ltc_textgen.data import rows

    reading = reading or Reading()
    with explaining(path):
        if (kind := special_file(path)) is not None:
            raise DataError(f"{path}: {kind}, not a file")
        if (reason := not_text_by_name(path)) is not None:
            raise DataError(f"{path}: {reason}")
        if kind_of(path):
            yield from skip_blank(rows.documents(path, reading), path)
        else:
            yield from skip_blank(_text(path, reading), path)


def skip_blank(chunks: Iterator[Chunk], where: Path | str) -> Iterator[Chunk]:
    """Leave out the documents that are empty or white space.

    Raises:
        DataError: If a document begins with more than `MOST_BLANK` blank characters.
    """
    held: list[str] = []
    length = 0
    blank = True
    for text, ends in chunks:
        if blank and not text.strip():
            held.append(text)
            length += len(text)
            if length > MOST_BLANK:
                raise DataError(f"{where}: the first {length:,} characters are blank: this is no text")
        elif blank:
            yield "".join(held) + text, ends
            blank, held, length = False, [], 0
        else:
            yield text, ends
        if ends:
            blank, held, length = True, [], 0


def content_note(path: Path) -> str | None:
    """A line if a file that is read as plain text seems to be HTML, JSON lines or a table; None if not."""
    if kind_of(path):
        return None
    try:
        with open_unpacked(path) as file:
            head = file.read(_SNIFF).decode("utf-8-sig", "ignore")
    except (OSError, *_UNPACK_ERRORS):
        return None  # said when it is read
    found = looks_like(head)
    return None if found is None else f"{path}: looks like {found}"


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn what the operating system and the decompressors raise into one line that names the file."""
    try:
        yield
    except _UNPACK_ERRORS as error:
        raise DataError(f"{path}: truncated or damaged {path.suffix} file ({error})") from error
    except OSError as error:
        if error.errno is None and path.suffix.lower() in {".gz", ".bz2", ".xz"}:
            raise DataError(f"{path}: truncated or damaged {path.suffix} file ({error})") from error
        raise DataError(f"{path}: cannot be read ({os_reason(error, path)})") from error
    except ValueError as error:  # a path with a NUL in it
        raise DataError(f"{str(path)!r}: cannot be read ({error})") from error


def open_unpacked(path: Path) -> io.BufferedIOBase:
    """A file for reading, decompressed by its suffix: .gz, .bz2, .xz."""
    match path.suffix.lower():
        case ".gz":
            return cast(io.BufferedIOBase, gzip.open(path, "rb"))
        case ".bz2":
            return cast(io.BufferedIOBase, bz2.open(path, "rb"))
        case ".xz":
            return cast(io.BufferedIOBase, lzma.open(path, "rb"))
    return path.open("rb")


def reject_binary(path: Path, head: bytes) -> None:
    """Raises DataError if a file that begins with these bytes is no UTF-8 text; the message says what it is."""
    if (reason := not_text(head[:_SNIFF])) is not None:
        raise DataError(f"{path}: {reason}")


class Decoder:
    """UTF-8 bytes to normalised text, chunk by chunk; errors name the file and the byte.

    Args:
        path: File that the bytes come from.
        reading: What to do with bytes that are not UTF-8, and where they are counted.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path, self._errors, self._counts = path, reading.errors, reading.counts
        self._utf8 = codecs.getincrementaldecoder("utf-8")(reading.errors)
        on_nul = {"replace": REPLACEMENT, "ignore": ""}.get(reading.errors)
        self._normalize = StreamNormalizer(self._nul_error if on_nul is None else on_nul, reading.counts)
        self._position = 0
        self._nul_at = 0

    def __call__(self, chunk: bytes, final: bool) -> str:
        waiting = self._utf8.getstate()[0]
        if (at := chunk.find(0)) >= 0:
            self._nul_at = self._position + at
        try:
            text = self._utf8.decode(chunk, final)
        except UnicodeDecodeError as error:
            sample = (waiting + chunk)[max(0, error.start - 2000) : error.start + 2000]
            encoding = likely_encoding(sample)
            raise self._error(f"not UTF-8 at byte {self._position - len(waiting) + error.start}", encoding) from error
        if self._errors == "replace":
            self._counts["replaced"] += text.count(REPLACEMENT) - chunk.count(REPLACEMENT.encode())
        elif self._errors == "ignore":
            lost = len(waiting) + len(chunk) - len(text.encode()) - len(self._utf8.getstate()[0])
            self._counts["ignored"] += lost
        self._position += len(chunk)
        return self._normalize(text, final)

    def _nul_error(self, _: int) -> DataError:
        return self._error(f"NUL byte at byte {self._nul_at}", None)

    def _error(self, what: str, encoding: str | None) -> DataError:
        unpacked = "" if unpacked_name(self._path) == self._path.name.lower() else " of the unpacked text"
        convert = f"probably {encoding}: iconv -f {encoding} -t UTF-8; or " if encoding else "this is no text; "
        return DataError(
            f"{self._path}: {what}{unpacked}; {convert}choose what to do with such bytes: --encoding-errors replace "
            "or ignore"
        )


def _text(path: Path, reading: Reading) -> Iterator[Chunk]:
    with open_unpacked(path) as file:
        chunk = file.read(_CHUNK)
        reject_binary(path, chunk)
        decode = Decoder(path, reading)
        while chunk:
            following = file.read(_CHUNK)
            yield decode(chunk, final=not following), not following
            chunk = following
