"""Large data sets of the hub: only their text column is stored, streamed once in bounded memory.

    <cache>/texts/<key>/train-00000.parquet …    a column of text, some megabytes each, compressed
    <cache>/texts/<key>/texts.json               which files are complete, and where the stream resumes

The `datasets` library would store a large data set twice, as published and as Arrow, with all its columns. An
interrupted stream resumes after its last complete file.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ltc_textgen.data.cache import cache_directory
from ltc_textgen.errors import DataError
from ltc_textgen.io.atomic import create_exclusive, write_atomic
from ltc_textgen.io.hashing import sha256_texts
from ltc_textgen.io.lock import exclusive

LARGE = 2_000_000_000
"""Bytes of all files of a repository from which on it is streamed."""

CHUNK = 1 << 24
"""Bytes of text in a file, or somewhat more."""

ROWS = 1000
"""Rows that are read at once."""

FACTS = "texts.json"

WAIT = 1.0
"""Seconds between reports of a process that waits for another one's stream (`hub_download` ends a silent one)."""


@dataclass
class KeptSplit:
    """The text of a split, on disk.

    Args:
        folder: Where it is.
        split: Its name in the data set.
        digests: sha256 of the rows of each file.
        rows: Rows in all files, those without text included.
        bytes: Their text in UTF-8.
        complete: Whether the stream has ended.
        revision: The commit of the repository that it comes from, so that resuming reads the same data set.
        state: Where the stream resumes, for the `datasets` library; None at its beginning.
    """

    folder: Path = field(repr=False)
    split: str = ""
    digests: list[str] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    complete: bool = False
    revision: str = ""
    state: dict[str, Any] | None = field(default=None, repr=False)

    def texts(self) -> Iterator[str | None]:
        """The text of every row, in order; None for a row without.

        Raises:
            DataError: If a file is missing or damaged.
        """
        import pyarrow
        import pyarrow.parquet

        for number, expected in enumerate(self.digests):
            path = self.path(number)
            try:
                column = pyarrow.parquet.read_table(path).column(0).to_pylist()
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(f"{path}: {error}; remove the folder, so that it is streamed again") from error
            if sha256_texts(text or "" for text in column) != expected:
                raise DataError(f"{path}: its checksum does not match; remove the folder, so that it is streamed again")
            yield from column

    def path(self, number: int) -> Path:
        """One of its files."""
        return self.folder / f"{self.split}-{number:05}.parquet"


def text_directory(identifier: str, column: str) -> Path:
    """Where the text of a data set is kept."""
    key = hashlib.sha256(f"{identifier} {column}".encode()).hexdigest()[:16]
    return cache_directory() / "texts" / f"{identifier.partition(':')[0].replace('/', '--')}-{key}"


def kept(identifier: str, column: str) -> dict[str, KeptSplit]:
    """What is stored of a data set; splits may be incomplete."""
    folder = text_directory(identifier, column)
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return {split: KeptSplit(folder, split, **values) for split, values in facts.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def kept_whole(identifier: str, column: str) -> dict[str, KeptSplit] | None:
    """All splits of a data set whose stream has ended, else None."""
    splits = kept(identifier, column)
    return splits if splits and all(split.complete for split in splits.values()) else None


def chosen_splits(splits: Iterable[str], name: str) -> dict[str, str]:
    """Which splits of a data set are train, valid and test; those that it has.

    Raises:
        DataError: If there is none to train on.
    """
    names = list(splits)
    train = "train" if "train" in names else names[0] if len(names) == 1 else None
    if train is None:
        raise DataError(f"{name}: no 'train' split (it has: {', '.join(names)})")
    chosen = {"train": train}
    if "test" in names and train != "test":
        chosen["test"] = "test"
    valid = next((split for split in ("validation", "valid", "dev") if split in names and split != train), None)
    return chosen if valid is None else chosen | {"valid": valid}


def is_large(name: str) -> bool:
    """Whether the files of a repository of the hub have at least `LARGE` bytes. Asks the hub."""
    from huggingface_hub import HfApi

    files = HfApi().dataset_info(name, files_metadata=True).siblings or []
    return sum(file.size or 0 for file in files) >= LARGE


def stream(identifier: str, column: str, on_block: Callable[[], None] = lambda: None) -> None:
    """Read a data set once and keep its text; resumes where an earlier stream ended.

    Of several processes that want the same text, as those of one run, one streams and the others wait for it.

    Args:
        identifier: `user/set`, or `user/set:configuration`.
        column: What holds the text.
        on_block: Called for each block that arrives, and every second while another process streams.

    Raises:
        DataError: If there is no such column of text.
    """
    folder = text_directory(identifier, column)
    with exclusive(folder.with_name(f"{folder.name}.lock"), lambda _: on_block(), WAIT):
        if kept_whole(identifier, column) is None:
            _stream(identifier, column, on_block)


def _stream(identifier: str, column: str, on_block: Callable[[], None]) -> None:
    import datasets
    from huggingface_hub import HfApi

    _report_blocks(on_block)
    name, _, configuration = identifier.partition(":")
    folder, before = text_directory(identifier, column), kept(identifier, column)
    begun = next((split.revision for split in before.values()), "")
    revision = begun or HfApi().dataset_info(name).sha or "main"
    source = datasets.load_dataset(name, configuration or None, revision=revision, streaming=True)
    wanted = sorted(chosen_splits(source, identifier).values())
    if sorted(before) != wanted:
        before = {}
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {split: before.get(split) or KeptSplit(folder, split, revision=revision) for split in wanted}
    for split in wanted:
        if not splits[split].complete:
            _stream_split(splits, split, source[split], identifier, column)


def _stream_split(splits: dict[str, KeptSplit], name: str, rows: Any, identifier: str, column: str) -> None:
    split = splits[name]
    if rows.column_names is not None:
        _require(column, rows.column_names, identifier)
        rows = rows.select_columns([column])
    rows = rows.with_format("arrow")  # before the state: that of this object is the one that moves
    if split.state is not None:
        rows.load_state_dict(split.state)
    held: list[str | None] = []
    size = 0
    for batch in rows.iter(batch_size=ROWS):
        _require(column, batch.column_names, identifier)
        for text in batch.column(column).to_pylist():
            if text is not None and not isinstance(text, str):
                raise DataError(f"{identifier}: column '{column}' holds {type(text).__name__}, not text")
            held.append(text)
            size += len((text or "").encode())
        if size >= CHUNK:
            _keep(splits, split, held, size, rows.state_dict())
            held, size = [], 0
    split.complete = True
    _keep(splits, split, held, size, None)


def _keep(
    splits: dict[str, KeptSplit], split: KeptSplit, texts: list[str | None], size: int, state: dict[str, Any] | None
) -> None:
    """Write a file, and then record it."""
    import pyarrow
    import pyarrow.parquet

    if texts:
        path = split.path(len(split.digests))
        table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.large_string())})
        with create_exclusive(path) as file:
            pyarrow.parquet.write_table(table, file, compression="zstd")
        Path(file.name).replace(path)
        split.digests.append(sha256_texts(text or "" for text in texts))
    split.rows, split.bytes, split.state = split.rows + len(texts), split.bytes + size, state
    facts = {name: asdict(each) for name, each in splits.items()}
    for values in facts.values():
        del values["folder"], values["split"]
    write_atomic(split.folder / FACTS, json.dumps(facts))


def _require(column: str, columns: list[str], identifier: str) -> None:
    if column not in columns:
        raise DataError(
            f"{identifier}: no column '{column}' (columns: {', '.join(columns)}); choose one with --text-column"
        )


def _report_blocks(on_block: Callable[[], None]) -> None:
    """Call `on_block` for every block that arrives, long before there is enough text for a file."""
    from huggingface_hub import hf_file_system

    reader: Any = hf_file_system.HfFileSystemFile
    original = reader._fetch_range

    def fetch(file: Any, start: int, end: int) -> bytes:
        content: bytes = original(file, start, end)
        on_block()
        return content

    reader._fetch_range = fetch
