"""Corpora: a name, a fingerprint of the content, and the documents of up to three splits."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from ltc_textgen.config import DataConfig
from ltc_textgen.data import hub
from ltc_textgen.data.find_files import PACKED, PLAIN, corpus_files, kind_of
from ltc_textgen.data.hub_stream import KeptSplit, chosen_splits
from ltc_textgen.data.normalize import describe_changes
from ltc_textgen.data.python_docs import embedded_documents, embedded_fingerprint
from ltc_textgen.data.rows import RowText, template_fields
from ltc_textgen.data.text_files import Chunk, Reading, content_note, file_digest, read_chunks
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.io.paths import user_path
from ltc_textgen.settings import did_you_mean

Source = Callable[[], Iterator[Chunk]]
"""Starts reading documents from the first: chunks of text, and whether a document ends with the chunk."""

CHARACTER_LIMIT = 4_000_000
"""Characters below which a corpus of files has characters as tokens, unless another tokenizer is chosen.

In less text than this, most tokens of a WordPiece vocabulary are too rare to be learned.
"""

HELD_OUT = 5_000_000
"""Most characters that are held out of a corpus for validation: scoring a tenth of a large one would take hours."""

NAMES = ("auto", "wikitext-2", "embedded")
"""Corpora that have a name; anything else is a path, or an id of the hub."""

NOTED_FILES, NOTES = 50, 3
"""Most files whose beginning is examined, and most notes about them."""

EMBEDDED_NOTE = "the embedded corpus (the English documentation inside this Python, about 1.7 MB)"


@dataclass(frozen=True)
class Corpus:
    """Text to train on and to validate on.

    Args:
        name: wikitext-2, embedded, a path or a data set id.
        fingerprint: sha256 of the content and of how it is cut into splits, in hexadecimal.
        sources: Readings of the splits `train`, `valid` and perhaps `test`.
        preferred: Tokenizer for `auto`; if None, chosen by the amount of text.
        sizes: Approximate bytes of UTF-8 of the splits, where known; a call may read the text.
        of_files: Whether the training text comes from files and folders.
        counts: What reading a split to its end changed or left out (see `normalize.describe_changes`).
    """

    name: str
    fingerprint: str
    sources: dict[str, Source] = field(repr=False)
    preferred: str | None = None
    sizes: dict[str, Callable[[], int]] = field(default_factory=dict, repr=False)
    counts: dict[str, Counter[str]] = field(default_factory=dict, repr=False)
    of_files: bool = False

    def changes(self) -> list[str]:
        """What the last complete reading of every split changed or left out, in words."""
        total: Counter[str] = Counter()
        for counts in self.counts.values():
            total.update(counts)
        return describe_changes(total)

    def size(self, split: str) -> int | None:
        """Approximate bytes of UTF-8 of a split; None if not known."""
        return self.sizes[split]() if split in self.sizes else None

    def chunks(self, split: str) -> Iterator[Chunk]:
        """The documents of a split in chunks of bounded length.

        Raises:
            UsageError: If the corpus has no such split.
        """
        if split not in self.sources:
            raise UsageError(f"{self.name}: no {split} split (it has: {', '.join(self.sources)})")
        return self.sources[split]()

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split, each whole.

        Raises:
            UsageError: If the corpus has no such split.
        """
        return _whole(self.chunks(split))

    def train(self) -> Iterator[str]:
        """The documents to train on."""
        return self.documents("train")

    def valid(self) -> Iterator[str]:
        """The documents to validate on."""
        return self.documents("valid")

    def test(self) -> Iterator[str]:
        """The documents of the test split, for corpora that have one."""
        return self.documents("test")

    def default_tokenizer(self) -> str:
        """What `--tokenizer auto` means here: bert for WikiText-2, char for little text, else wordpiece."""
        if self.preferred is not None:
            return self.preferred
        characters = 0
        for text, _ in self.chunks("train"):
            characters += len(text)
            if characters >= CHARACTER_LIMIT:
                return "wordpiece"
        return "char"


def load_corpus(config: DataConfig, notify: Callable[[str], None] = lambda _: None) -> Corpus:
    """The corpus that `config.data` names, with the validation text that `config.valid` names.

    `auto` is WikiText-2, if it and the BERT tokenizer (where that is wanted) are cached or the hub answers; else the
    embedded corpus, and `notify` is called with one line that says so.

    Raises:
        DataError: If it is not available or empty; one line that says what to do.
        UsageError: If an option does not fit it.
    """
    if config.template is not None:
        template_fields(config.template)
    if len(config.sources) > 1:
        corpus = _several(config, notify)
    else:
        match config.data:
            case "auto":
                corpus = _automatic(config, notify)
            case "wikitext-2":
                corpus = _from_hub(f"{hub.WIKITEXT}:{hub.WIKITEXT_2}", config, "wikitext-2")
            case "embedded":
                corpus = _embedded(config)
            case _:
                corpus = _named(config, notify)
    if config.include and not corpus.of_files and config.valid is None:
        raise UsageError(f"--include has no effect on {corpus.name}: it chooses among the files of a folder")
    return corpus if config.valid is None else _with_validation(corpus, config, notify)


def documents_of(
    paths: Path | Sequence[Path], config: DataConfig, notify: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """The documents of files or folders, whole: to evaluate on, or as prompts.

    Raises:
        DataError: If they cannot be read, or hold no text.
    """
    return _whole(_files([paths] if isinstance(paths, Path) else paths, config, notify).source())


def _automatic(config: DataConfig, notify: Callable[[str], None]) -> Corpus:
    try:
        if config.tokenizer in {"auto", "bert"}:
            hub.tokenizer_file(hub.BERT)
        return _from_hub(f"{hub.WIKITEXT}:{hub.WIKITEXT_2}", config, "wikitext-2")
    except DataError as error:
        reason = str(error).split(". Connect,")[0]
        notify(f"Training on {EMBEDDED_NOTE} instead of WikiText-2: {reason}.")
        return _embedded(config)


def _named(config: DataConfig, notify: Callable[[str], None]) -> Corpus:
    """A path if there is one, else an id of the hub if it looks like one."""
    (name,) = config.sources
    path = user_path(name)
    repository = name.partition(":")[0]
    local = name.startswith((".", "/", "~")) or "\\" in name or repository.count("/") != 1
    if local or _exists(path) or kind_of(path) or path.suffix.lower() in PLAIN + PACKED:
        if not _exists(path) and path.name == name and not path.suffix:
            known = did_you_mean(name, list(NAMES))
            raise DataError(f"{name!r}: no such file or folder, and no corpus of that name{known}")
        return _local(name, _files([path], config, notify), config)
    try:
        return _from_hub(name, config, name)
    except DataError as error:
        raise DataError(f"'{name}' is no file or folder here, and as a data set of the hub: {error}") from error


def _several(config: DataConfig, notify: Callable[[str], None]) -> Corpus:
    """Files and folders, read one after the other."""
    paths = [user_path(name) for name in config.sources]
    for name, path in zip(config.sources, paths, strict=True):
        if not _exists(path):
            what = "is a corpus by name" if name in NAMES else "no such file or folder"
            raise DataError(f"--data {name}: {what}; of several --data, each must be a file or folder")
    return _local(", ".join(config.sources), _files(paths, config, notify), config)


def _local(name: str, files: "_Files", config: DataConfig) -> Corpus:
    corpus = Corpus(
        name,
        files.fingerprint,
        {"train": files.source},
        sizes={"train": files.size},
        counts={"train": files.reading.counts},
        of_files=True,
    )
    return _cut(corpus, config)


@dataclass(frozen=True)
class _Files:
    """Files as one source of documents."""

    source: Source
    fingerprint: str
    size: Callable[[], int]
    reading: Reading


def _files(paths: Sequence[Path], config: DataConfig, notify: Callable[[str], None]) -> _Files:
    folders = [path for path in paths if path.is_dir()] if config.include else paths
    if config.include and not folders:
        raise UsageError(f"--include has no effect on {paths[0]}: it chooses among the files of a folder")
    files = [file for path in paths for file in corpus_files(path, notify, config.include if path in folders else ())]
    reading = Reading(config.text_column, config.template, config.encoding_errors)
    _note_contents(files, config, notify)

    def read() -> Iterator[Chunk]:
        reading.counts.clear()
        for file in files:
            yield from read_chunks(file, reading)

    digest = hashlib.sha256(f"{config.text_column} {config.encoding_errors}".encode())
    if config.template is not None:
        digest.update(config.template.encode())
    for file in files:
        digest.update(f"{file.suffixes[-2:]} {file_digest(file)}".encode("utf-8", "surrogateescape"))
    if next(read(), None) is None:
        raise DataError(f"{paths[0]}: no text in it: empty, or only white space")

    @cache
    def size() -> int:
        if not any(kind_of(file) or file.suffix.lower() in PACKED for file in files):
            return sum(file.stat().st_size for file in files)
        return sum(len(text.encode()) for text, _ in read())

    return _Files(read, digest.hexdigest(), size, reading)


def _note_contents(files: list[Path], config: DataConfig, notify: Callable[[str], None]) -> None:
    """Say which options have no effect, and which plain text looks like another format."""
    if not any(kind_of(file) for file in files):
        for option, given in (("--text-column", config.text_column != "text"), ("--template", config.template)):
            if given:
                notify(f"{option} has no effect on {files[0].name}: plain text has no columns, it is read whole")
    notes = [note for file in files[:NOTED_FILES] if (note := content_note(file)) is not None]
    for note in notes[:NOTES]:
        notify(note)
    if len(notes) > NOTES:
        notify(f"{len(notes) - NOTES} more files look like another format than prose")


def _embedded(config: DataConfig) -> Corpus:
    def read() -> Iterator[Chunk]:
        return ((document, True) for document in embedded_documents())

    return _cut(Corpus("embedded", embedded_fingerprint(), {"train": read}, "wordpiece"), config)


def _from_hub(identifier: str, config: DataConfig, name: str) -> Corpus:
    if config.template is not None:
        raise UsageError(f"--template goes with files of rows; of the data set {name} choose a column: --text-column")
    wikitext = identifier.startswith(f"{hub.WIKITEXT}:")
    column = "text" if wikitext else config.text_column
    splits = hub.load_dataset(identifier) if wikitext else hub.find_dataset(identifier, column, config.streaming)
    names = chosen_splits(splits, name)
    readings = {split: Reading(column, None, config.encoding_errors) for split in names.values()}

    def source(split: str) -> Source:
        return lambda: _hub_documents(splits[split], readings[split], f"{name}, {split} split", wikitext)

    digest = hashlib.sha256(f"{wikitext} {column}".encode())
    sizes = dict.fromkeys(names, 0)
    for split in sorted(names):
        found = splits[names[split]]
        if isinstance(found, KeptSplit):
            digest.update(f"{split} {found.digests}".encode())
            sizes[split] = found.bytes
            continue
        for text in hub.rows(found, column, name):
            content = (text or "").encode()
            digest.update(len(text or "").to_bytes(8, "little") + content)
            sizes[split] += len(content)
    corpus = Corpus(
        name,
        digest.hexdigest(),
        {split: source(of) for split, of in names.items()},
        "bert" if identifier == f"{hub.WIKITEXT}:{hub.WIKITEXT_2}" else None,
        {split: partial(int, size) for split, size in sizes.items()},
        {split: readings[of].counts for split, of in names.items()},
        of_files=False,
    )
    return corpus if "valid" in names else _cut(corpus, config)


def _hub_documents(split: Any, reading: Reading, name: str, wikitext: bool) -> Iterator[Chunk]:
    """The documents of a split of a data set: its rows, or the articles that they are lines of."""
    reading.counts.clear()
    row_text = RowText(reading)

    def texts() -> Iterator[str]:
        for number, text in enumerate(hub.rows(split, reading.column, name), 1):
            if text is None:
                reading.counts["nulls"] += 1
            yield "" if text is None else row_text.clean(text, f"{name}, row {number}")

    return hub.articles(texts()) if wikitext else ((text, True) for text in texts() if text.strip())


def _with_validation(corpus: Corpus, config: DataConfig, notify: Callable[[str], None]) -> Corpus:
    """The whole corpus to train on, another file or folder to validate on."""
    assert config.valid is not None
    valid = _files([user_path(config.valid)], config, notify)
    whole = corpus.sources.get("whole", corpus.sources["train"])
    sizes = {"valid": valid.size}
    if known := corpus.sizes.get("whole", corpus.sizes.get("train")):
        sizes["train"] = known
    test = {split: source for split, source in corpus.sources.items() if split == "test"}
    combined = hashlib.sha256(f"{corpus.fingerprint} valid {valid.fingerprint}".encode()).hexdigest()
    sources = {"train": whole, "valid": valid.source} | test
    counts = corpus.counts | {"valid": valid.reading.counts}
    return Corpus(corpus.name, combined, sources, corpus.preferred, sizes, counts, corpus.of_files)


def _cut(corpus: Corpus, config: DataConfig) -> Corpus:
    """Hold out the end of the text for validation; the first int(characters * (1 - valid_fraction)) characters train.

    At most `HELD_OUT` characters are held out.
    """
    whole = corpus.sources["train"]

    @cache
    def boundary() -> int:
        characters = sum(len(text) for text, _ in whole())
        return max(int(characters * (1 - config.valid_fraction)), characters - HELD_OUT)

    sources: dict[str, Source] = {
        **corpus.sources,
        "train": lambda: _head(whole(), boundary()),
        "valid": lambda: _tail(whole(), boundary()),
        "whole": whole,
    }
    fingerprint = hashlib.sha256(f"{corpus.fingerprint} {config.valid_fraction!r}".encode()).hexdigest()
    sizes: dict[str, Callable[[], int]] = {}
    if (known := corpus.sizes.get("train")) is not None:

        def valid() -> int:
            return min(int(known() * config.valid_fraction), HELD_OUT)

        sizes = {"train": lambda: known() - valid(), "valid": valid, "whole": known}
    return Corpus(corpus.name, fingerprint, sources, corpus.preferred, sizes, corpus.counts, corpus.of_files)


def _head(chunks: Iterator[Chunk], characters: int) -> Iterator[Chunk]:
    for text, ends in chunks:
        if len(text) >= characters:
            yield text[:characters], True
            return
        yield text, ends
        characters -= len(text)


def _tail(chunks: Iterator[Chunk], characters: int) -> Iterator[Chunk]:
    for text, ends in chunks:
        if len(text) > characters:
            yield text[characters:], ends
        characters = max(0, characters - len(text))


def _whole(chunks: Iterable[Chunk]) -> Iterator[str]:
    parts: list[str] = []
    for text, ends in chunks:
        parts.append(text)
        if ends:
            document = "".join(parts)
            if document:
                yield document
            parts = []


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
