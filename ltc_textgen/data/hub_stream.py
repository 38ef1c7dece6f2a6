"""Large data sets of the hub: their text alone is kept while it streams by, once, in bounded memory.

    <cache>/texts/<key>/train-00000.parquet …    a column of text, some megabytes each, compressed
    <cache>/texts/<key>/texts.json               what is there, and where the stream goes on

The `datasets` library would keep a large data set twice, as it was published and as Arrow, with all its columns. A
stream that is interrupted goes on after the last file that is whole.

Where what was made once is kept.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ltc_textgen.errors import DataError
from ltc_textgen.io.atomic import write_atomic


def cache_directory() -> Path:
    """Where token files and texts of the hub are kept: LTC_CACHE, or ~/.cache/ltc-textgen."""
    return Path(os.environ.get("LTC_CACHE") or Path.home() / ".cache" / "ltc-textgen").expanduser()


LARGE = 2_000_000_000
"""Bytes of all files of a repository from which it is streamed."""

CHUNK = 1 << 24
"""Bytes of text in a file, or somewhat more."""

ROWS = 1000
"""Rows that are read at once."""

FACTS = "texts.json"

WAIT = 1.0
"""Seconds between signs of life of a process that waits for another one's stream (`download` ends a silent one)."""


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
        revision: The commit of the repository that it comes from, so that what is taken up is the same data set.
        state: Where it goes on, for the `datasets` library; None at its beginning.
    """

    folder: Path = field(repr=False)
    split: str = ""
    digests: list[str] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    complete: bool = False
    revision: str = ""
    state: dict[str, Any] | None = field(default=None, repr=False)

    def texts(self) -> Iterator[str]:
        """The text of every row, in order.

        Raises:
            DataError: If a file is gone or damaged.
        """
        import pyarrow
        import pyarrow.parquet

        for number, expected in enumerate(self.digests):
            path = self.path(number)
            try:
                column = pyarrow.parquet.read_table(path).column(0).to_pylist()
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(f"{path}: {error}; remove the folder, so that it is streamed again") from error
            if digest(column) != expected:
                raise DataError(f"{path}: is not as it was written; remove the folder, so that it is streamed again")
            yield from column

    def path(self, number: int) -> Path:
        """One of its files."""
        return self.folder / f"{self.split}-{number:05}.parquet"


def text_directory(identifier: str, column: str) -> Path:
    """Where the text of a data set is kept."""
    key = hashlib.sha256(f"{identifier} {column}".encode()).hexdigest()[:16]
    return cache_directory() / "texts" / f"{identifier.partition(':')[0].replace('/', '--')}-{key}"


def kept(identifier: str, column: str) -> dict[str, KeptSplit]:
    """What is there of a data set; splits may be incomplete."""
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
    """Whether the files of a repository of the hub come to `LARGE` bytes. Asks the hub."""
    from huggingface_hub import HfApi

    files = HfApi().dataset_info(name, files_metadata=True).siblings or []
    return sum(file.size or 0 for file in files) >= LARGE


def stream(identifier: str, column: str, told: Callable[[], None] = lambda: None) -> None:
    """Read a data set once and keep its text; goes on where an earlier stream ended.

    Of several processes that want the same text, as those of one run, one streams and the others wait for it.

    Args:
        identifier: `user/set`, or `user/set:configuration`.
        column: What holds the text.
        told: Is called whenever something has arrived, and now and then while another process streams.

    Raises:
        DataError: If there is no such column of text.
    """
    with _alone(text_directory(identifier, column), told):
        if kept_whole(identifier, column) is None:
            _stream(identifier, column, told)


@contextmanager
def _alone(folder: Path, told: Callable[[], None]) -> Iterator[None]:
    """One process at a time writes into a folder."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=WAIT)
        except Timeout:
            told()
    try:
        yield
    finally:
        lock.release()


def _stream(identifier: str, column: str, told: Callable[[], None]) -> None:
    import datasets
    from huggingface_hub import HfApi

    _tell_blocks(told)
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


def digest(texts: list[str]) -> str:
    """sha256 of texts, each with its length."""
    sha = hashlib.sha256()
    for text in texts:
        content = text.encode()
        sha.update(len(content).to_bytes(8, "little") + content)
    return sha.hexdigest()


def _stream_split(splits: dict[str, KeptSplit], name: str, rows: Any, identifier: str, column: str) -> None:
    split = splits[name]
    if rows.column_names is not None:
        _require(column, rows.column_names, identifier)
        rows = rows.select_columns([column])
    rows = rows.with_format("arrow")  # before the state: that of this object is the one that moves
    if split.state is not None:
        rows.load_state_dict(split.state)
    held: list[str] = []
    size = 0
    for batch in rows.iter(batch_size=ROWS):
        _require(column, batch.column_names, identifier)
        for text in batch.column(column).to_pylist():
            if text is not None and not isinstance(text, str):
                raise DataError(f"{identifier}: column '{column}' holds {type(text).__name__}, not text")
            held.append(text or "")
            size += len(held[-1].encode())
        if size >= CHUNK:
            _keep(splits, split, held, size, rows.state_dict())
            held, size = [], 0
    split.complete = True
    _keep(splits, split, held, size, None)


def _keep(
    splits: dict[str, KeptSplit], split: KeptSplit, texts: list[str], size: int, state: dict[str, Any] | None
) -> None:
    """Write a file, and then that it is there."""
    import pyarrow
    import pyarrow.parquet

    if texts:
        path = split.path(len(split.digests))
        temporary = path.with_suffix(".tmp")
        table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.large_string())})
        pyarrow.parquet.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
        split.digests.append(digest(texts))
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


def _tell_blocks(told: Callable[[], None]) -> None:
    """Call `told` for every block that arrives, long before a file's worth of text is there."""
    from huggingface_hub import hf_file_system

    reader: Any = hf_file_system.HfFileSystemFile
    original = reader._fetch_range

    def fetch(file: Any, start: int, end: int) -> bytes:
        content: bytes = original(file, start, end)
        told()
        return content

    reader._fetch_range = fetch
