"""Documents out of files of rows (JSON, JSON lines, CSV, TSV, Parquet): a column, or a template of columns."""

import codecs
import csv
import io
import json
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltc_textgen.data.find_files import kind_of
from ltc_textgen.data.normalize import REPLACEMENT, StreamNormalizer
from ltc_textgen.data.sniff import likely_encoding
from ltc_textgen.data.text_files import Chunk, Reading, open_unpacked, reject_binary
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.io.output import one_line

MOST_ROW = 1 << 26
"""Bytes of one row, of which a file of rows may have any number."""

_CHUNK = 1 << 20
CHAT_ADVICE = (
    "a conversation; make it a text first, for example: "
    """jq -c '{text: ([.COLUMN[] | .role + ": " + .content] | join("\\n"))}' FILE > text.jsonl"""
)


def documents(path: Path, reading: Reading) -> Iterator[Chunk]:
    """The texts of a file's rows, in order; rows without text (null) are counted and skipped.

    Raises:
        DataError: While reading: not the format that the suffix says, a row longer than `MOST_ROW`, no such column,
            or a column that holds something else than text. The message names the file and the line or row.
    """
    read = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_values,
        ".csv": _table,
        ".tsv": _table,
        ".parquet": _parquet,
    }[kind_of(path)]
    text_of = RowText(reading)
    for where, row in read(path, reading):
        text = text_of(row, f"{path}, {where}")
        if text is not None:
            yield text, True


def template_fields(template: str) -> list[str]:
    """The names of fields in a template such as "{user}: {message}".

    Raises:
        UsageError: If it names none, or holds more than plain names in braces.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"template {template!r}: {error}; write {{{{ and }}}} for braces") from None
    names = [name for _, name, _, _ in parsed if name is not None]
    simple = all(not spec and not conversion for _, name, spec, conversion in parsed if name is not None)
    if not names or not simple or not all(names) or any(set(name) & set(".[]!:") for name in names):
        raise UsageError(f"template {template!r}: expected names of columns in braces, as in '{{user}}: {{message}}'")
    return names


class RowText:
    """The text of a row.

    Args:
        reading: Column or template, and what to do with text that is not well formed.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.columns = [reading.column] if reading.template is None else template_fields(reading.template)

    def __call__(self, row: Any, where: str) -> str | None:
        """The normalised text of a row; None if a field that it needs is null.

        Raises:
            DataError: If the row has no such field of text.
        """
        if isinstance(row, str) and self._reading.template is None:
            return self.clean(row, where)
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: expected a JSON object with a field '{self.columns[0]}', got {type(row).__name__}"
            )
        values = {name: self._field(row, name, where) for name in self.columns}
        if any(value is None for value in values.values()):
            self._reading.counts["nulls"] += 1
            return None
        if self._reading.template is None:
            return self.clean(str(values[self.columns[0]]), where)
        parsed = string.Formatter().parse(self._reading.template)
        text = "".join(literal + ("" if name is None else str(values[name])) for literal, name, _, _ in parsed)
        return self.clean(text, where)

    def _field(self, row: dict[str, Any], name: str, where: str) -> str | None:
        if name not in row:
            fields = ", ".join(sorted(map(str, row))) or "none"
            option = "--text-column" if self._reading.template is None else "--template"
            raise DataError(f"{where}: no field '{name}' (fields: {fields}); choose with {option}")
        value = row[name]
        if value is None or isinstance(value, str):
            return value
        if self._reading.template is not None and isinstance(value, int | float):
            return str(value)
        raise DataError(f"{where}: field '{name}' is {type(value).__name__}, not text; {self._advice(row, name)}")

    @staticmethod
    def _advice(row: dict[str, Any], name: str) -> str:
        value = row[name]
        if isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
            return CHAT_ADVICE.replace("COLUMN", name)
        others = [str(key) for key, other in row.items() if isinstance(other, str)]
        if others:
            return f"fields of text: {', '.join(sorted(others)[:8])}; choose one with --text-column"
        return "no field of this row is text: write its text into one field first"

    def clean(self, text: str, where: str) -> str:
        """A text in normalised form.

        Raises:
            DataError: If it holds NUL or half of a surrogate pair, and errors are strict.
        """
        errors, counts = self._reading.errors, self._reading.counts
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if errors == "strict":
                raise DataError(f"{where}: half of a surrogate pair at character {error.start}") from error
            counts["surrogates"] += 1
            text = text.encode("utf-8", errors).decode()
        on_nul: dict[str, str] = {"replace": REPLACEMENT, "ignore": ""}
        return StreamNormalizer(on_nul.get(errors) or _nul_error(where, errors), counts)(text, True)


def _nul_error(where: str, errors: str) -> Callable[[int], Exception] | str:
    if errors == "ignore":
        return ""
    return lambda at: DataError(
        f"{where}: NUL at character {at}; choose what to do with it: --encoding-errors replace or ignore"
    )


def _json_lines(path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    with open_unpacked(path) as file:
        for number, line in enumerate(_bounded_lines(path, file), 1):
            if number == 1:
                reject_binary(path, line)
            while line.startswith(codecs.BOM_UTF8):  # where files were joined
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                where = f"line {number}"
                yield where, _parsed(_decoded(line, f"{path}, {where}", reading), f"{path}, {where}")


def _bounded_lines(path: Path, file: io.BufferedIOBase) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MOST_ROW + 1):
        number += 1
        if len(line) > MOST_ROW:
            raise DataError(
                f"{path}, line {number}: longer than {MOST_ROW >> 20} MiB, no row; if it is one text, name it .txt"
            )
        yield line


def _decoded(line: bytes, where: str, reading: Reading) -> str:
    try:
        text = line.decode("utf-8", reading.errors)
    except UnicodeDecodeError as error:
        encoding = likely_encoding(line[max(0, error.start - 2000) : error.start + 2000])
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start} of the line; probably {encoding}: iconv -f {encoding} -t UTF-8; "
            "or choose what to do with such bytes: --encoding-errors replace or ignore"
        ) from error
    _count_lost(line, text, reading.errors, reading.counts)
    return text


def _count_lost(line: bytes, text: str, errors: str, counts: Counter[str]) -> None:
    if errors == "replace":
        counts["replaced"] += text.count(REPLACEMENT) - line.count(REPLACEMENT.encode())
    elif errors == "ignore":
        counts["ignored"] += len(line) - len(text.encode())


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def _json_values(path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    """The rows of a .json file: the elements of one array, or values one after the other (JSON lines, or indented)."""
    decoder = json.JSONDecoder()
    with open_unpacked(path) as file:
        head = file.read(_CHUNK)
        reject_binary(path, head)
        buffer, number, array = _JsonBuffer(path, file, head, reading), 0, False
        if buffer.peek() == "[":
            buffer.skip(1)
            array = True
        while (start := buffer.peek()) and not (array and start == "]"):
            number += 1
            yield f"row {number}", buffer.value(decoder, number)
            if array and (following := buffer.peek()) != "]":
                if following != ",":
                    raise DataError(f"{path}, row {number}: not JSON (expected ',' or ']' after it, got {following!r})")
                buffer.skip(1)
        if array and not start:
            raise DataError(f"{path}, row {number}: not JSON (the array has no end)")


class _JsonBuffer:
    """The characters of a JSON file from the next value on, as many as are needed to parse it."""

    def __init__(self, path: Path, file: io.BufferedIOBase, head: bytes, reading: Reading) -> None:
        self._path, self._file, self._reading = path, file, reading
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")(reading.errors)
        self._text, self._at, self._ended = "", 0, False
        self._feed(head)

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n\ufeff":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._feed(self._file.read(_CHUNK))

    def skip(self, characters: int) -> None:
        self._at += characters

    def value(self, decoder: json.JSONDecoder, number: int) -> Any:
        """Parse the next value; reads twice as far each time that it is not whole yet."""
        self.peek()
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except RecursionError as error:
                raise DataError(f"{self._path}, row {number}: not JSON (nested too deeply)") from error
            except ValueError as error:
                if self._ended:
                    raise DataError(f"{self._path}, row {number}: not JSON ({error})") from error
            held = len(self._text) - self._at
            if held > MOST_ROW:
                raise DataError(f"{self._path}, row {number}: not JSON, or longer than {MOST_ROW >> 20} MiB")
            self._feed(self._file.read(max(_CHUNK, held)))

    def _feed(self, chunk: bytes) -> None:
        self._ended = not chunk
        try:
            text = self._utf8.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            encoding = likely_encoding(chunk[max(0, error.start - 2000) : error.start + 2000])
            raise DataError(f"{self._path}: not UTF-8; probably {encoding}: iconv -f {encoding} -t UTF-8") from error
        _count_lost(
            chunk, text, self._reading.errors if self._reading.errors == "replace" else "", self._reading.counts
        )
        self._text, self._at = self._text[self._at :] + text, 0


def _table(path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    """The rows of a .csv or .tsv file, whose first line names the columns."""
    csv.field_size_limit(MOST_ROW)
    with open_unpacked(path) as file:
        lines = _bounded_lines(path, file)
        first = next(lines, b"")
        reject_binary(path, first)
        header = _decoded(first, f"{path}, line 1", reading).lstrip("\ufeff")
        delimiter = "\t" if kind_of(path) == ".tsv" else max(",;\t|", key=header.count)
        decoded = (_decoded(line, f"{path}, line {n}", reading) for n, line in enumerate(lines, 2))
        reader = csv.reader(_chain(header, decoded), delimiter=delimiter, strict=True)
        try:
            columns = next(reader, [])
            for fields in reader:
                if fields:
                    if len(fields) > len(columns):
                        raise DataError(
                            f"{path}, line {reader.line_num}: {len(fields)} fields for {len(columns)} columns"
                        )
                    yield (
                        f"line {reader.line_num}",
                        dict(zip(columns, fields, strict=False)) | dict.fromkeys(columns[len(fields) :]),
                    )
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not a {kind_of(path)} table ({error})") from error


def _chain(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _parquet(path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    columns = RowText(reading).columns
    try:
        with _seekable(path) as file:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if missing := next((column for column in columns if column not in names), None):
                raise DataError(
                    f"{path}: no column '{missing}' (columns: {', '.join(names)}); choose one with --text-column"
                )
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for values in batch.to_pylist():
                    row += 1
                    yield f"row {row}", values
    except (pyarrow.ArrowException, OSError) as error:
        reason = one_line(error)
        raise DataError(f"{path}: truncated, or no Parquet file ({reason})") from error


@contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    """The file itself, or its decompressed content on disk: Parquet is read from its end."""
    with open_unpacked(path) as source:
        if source.seekable() and path.suffix.lower() == ".parquet":
            yield source
            return
        with tempfile.TemporaryFile() as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
            file.seek(0)
            yield file
