"""Text out of files: .txt, .jsonl and .parquet, each also gzipped, and folders of them, in bounded memory.

A document comes as one or more pieces `(text, ends)`; `ends` is True on the last. Text files are one document each and
come in pieces of about a mebibyte, so that neither a large file nor one endless line is held in memory.

What is made of odd input: a byte order mark is dropped, CRLF becomes LF, blank documents are skipped, folders are read
in the order of their paths, hidden files left out, and files of other kinds too, which is told. A NUL byte counts as an
encoding error. Everything else that is not text is refused in one line that names the file and the byte, line or row.
"""

import codecs
import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltc_textgen.errors import DataError

Piece = tuple[str, bool]

SUFFIXES = (".txt", ".jsonl", ".parquet")
EXAMPLES = 5
"""Names of files that are told when many are left out."""

_CHUNK = 1 << 20
_SNIFF = 1 << 13
_SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive (name it .gz)",
    b"PAR1": "a Parquet file (name it .parquet)",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF file",
    b"\x7fELF": "a program",
    b"\xff\xfe": "UTF-16 text (convert it: iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text (convert it: iconv -f UTF-16 -t UTF-8)",
}


def corpus_files(path: Path, notify: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The files of a corpus in reading order: the file itself, or those of a folder and the folders in it.

    Args:
        path: File or folder.
        notify: Is told in one line how many files of a folder are left out because they are of no known kind, and
            some of their names.

    Raises:
        DataError: If the path is missing or unreadable, or the folder holds none of the known kinds.
    """
    with _explaining(path):
        path.stat()
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path}: neither a file nor a folder")
        return [path]

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    visible = [
        Path(folder) / name
        for folder, folders, names in os.walk(path, onerror=refuse)
        if not _prune(folders)
        for name in names
        if not name.startswith(".")
    ]
    visible.sort(key=lambda file: file.relative_to(path).as_posix())
    found = [file for file in visible if file.name.removesuffix(".gz").endswith(SUFFIXES)]
    known, kinds = set(found), ", ".join(SUFFIXES)
    if not found:
        raise DataError(f"{path}: no text in this folder; looked for {kinds} and the same with .gz")
    others = [file.relative_to(path).as_posix() for file in visible if file not in known]
    if others:
        count = f"{len(others)} files" if len(others) > 1 else "1 file"
        examples = ", ".join(others[:EXAMPLES]) + (", …" if len(others) > EXAMPLES else "")
        notify(f"{path}: skipped {count} of other kinds than {kinds} and the same with .gz: {examples}")
    return found


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with _explaining(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_pieces(path: Path, column: str = "text", encoding_errors: str = "strict") -> Iterator[Piece]:
    """The documents of one file.

    Args:
        path: A .jsonl or .parquet file has a document a row; any other is text, and one document. .gz is unpacked.
        column: The field of a row that holds the text.
        encoding_errors: What to do with bytes that are not UTF-8, and with NUL: strict refuses, replace writes U+FFFD,
            ignore leaves them out.

    Raises:
        DataError: While reading, if the file is no such text.
    """
    name = path.name.removesuffix(".gz")
    with _explaining(path):
        if name.endswith(".parquet"):
            yield from _parquet(path, column)
        elif name.endswith(".jsonl"):
            yield from skip_blank(_jsonl(path, column, encoding_errors))
        else:
            yield from skip_blank(_text(path, encoding_errors))


def skip_blank(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Leave out the documents that are empty or white space."""
    held: list[str] = []
    blank = True
    for text, ends in pieces:
        if blank and not text.strip():
            held.append(text)
        elif blank:
            yield "".join(held) + text, ends
            blank, held = False, []
        else:
            yield text, ends
        if ends:
            blank, held = True, []


def _prune(folders: list[str]) -> bool:
    """Keep os.walk out of hidden folders and make its order that of the names. Always False."""
    folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
    return False


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn what the operating system and the unpackers raise into one line that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file or folder") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a path with a NUL in it
        raise DataError(f"{path!r}: cannot be read ({error})") from error


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _refuse_binary(path: Path, head: bytes) -> None:
    kind = next((name for start, name in _SIGNATURES.items() if head.startswith(start)), None)
    if kind is not None:
        raise DataError(f"{path}: not plain text: {kind}")
    control = sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 or byte == 127 for byte in head)
    if control > len(head) // 20:
        raise DataError(f"{path}: looks binary: {control} control bytes in the first {len(head)}")


class _Decoder:
    """UTF-8 bytes to text, chunk by chunk, with the file and the byte in every refusal."""

    def __init__(self, path: Path, errors: str) -> None:
        self._path, self._errors = path, errors
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)
        self._position = 0
        self._carriage = ""
        self._started = False

    def __call__(self, chunk: bytes, final: bool) -> str:
        waiting = len(self._utf8.getstate()[0])
        if self._errors == "strict" and (at := chunk.find(0)) >= 0:
            raise self._refusal("NUL byte", self._position + at)
        try:
            text = self._utf8.decode(chunk, final)
        except UnicodeDecodeError as error:
            raise self._refusal("not UTF-8", self._position - waiting + error.start) from error
        self._position += len(chunk)
        text = self._carriage + text
        self._carriage = "\r" if text.endswith("\r") and not final else ""
        text = text.removesuffix("\r") if self._carriage else text
        if not self._started and text:
            self._started = True
            text = text.removeprefix("\ufeff")
        return text.replace("\r\n", "\n").replace("\0", "\ufffd" if self._errors == "replace" else "")

    def _refusal(self, what: str, at: int) -> DataError:
        unpacked = " of the unpacked text" if self._path.suffix == ".gz" else ""
        return DataError(
            f"{self._path}: {what} at byte {at}{unpacked}; convert the file to UTF-8, or choose what to do with such "
            "bytes: --encoding-errors replace or ignore"
        )


def _text(path: Path, errors: str) -> Iterator[Piece]:
    with _open(path) as file:
        chunk = file.read(_CHUNK)
        _refuse_binary(path, chunk[:_SNIFF])
        decode = _Decoder(path, errors)
        while chunk:
            following = file.read(_CHUNK)
            yield decode(chunk, final=not following), not following
            chunk = following


def _jsonl(path: Path, column: str, errors: str) -> Iterator[Piece]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                _refuse_binary(path, line[:_SNIFF])
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield _row_text(_row(path, number, line, errors), column, f"{path}, line {number}", errors), True


def _row(path: Path, number: int, line: bytes, errors: str) -> Any:
    try:
        return json.loads(line.decode("utf-8", errors))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 at byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON ({error})") from error


def _row_text(row: Any, column: str, where: str, errors: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object with a field '{column}', got {type(row).__name__}")
    text = row.get(column)
    if not isinstance(text, str):
        fields = ", ".join(sorted(map(str, row))) or "none"
        problem = (
            f"no field '{column}'" if column not in row else f"field '{column}' is {type(text).__name__}, not text"
        )
        raise DataError(f"{where}: {problem} (fields: {fields}); choose one with --text-column")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise DataError(f"{where}: half of a surrogate pair at character {error.start}") from error
        text = text.encode("utf-8", errors).decode()
    return text.replace("\r\n", "\n")


def _parquet(path: Path, column: str) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _seekable(path) as file:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if column not in names:
                raise DataError(
                    f"{path}: no column '{column}' (columns: {', '.join(names)}); choose one with --text-column"
                )
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if not isinstance(text, str):
                        raise DataError(f"{path}, row {row}: '{column}' is {type(text).__name__}, not text")
                    if text.strip():
                        yield text.replace("\r\n", "\n"), True
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path}: truncated, or no Parquet file ({reason})") from error


@contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    """The file itself, or what is unpacked from it, on disk: Parquet is read from its end."""
    if path.suffix != ".gz":
        with path.open("rb") as file:
            yield file
        return
    with gzip.open(path, "rb") as packed, tempfile.TemporaryFile() as file:
        try:
            while chunk := packed.read(_CHUNK):
                file.write(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: truncated or damaged gzip file ({error})") from error
        file.seek(0)
        yield file
