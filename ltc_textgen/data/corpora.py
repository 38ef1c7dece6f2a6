"""Which text is read: a corpus is a name, a fingerprint of its content, and documents in up to three splits."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from ltc_textgen.config import DataConfig, did_you_mean
from ltc_textgen.data import hub
from ltc_textgen.data.hub_stream import KeptSplit, chosen_splits
from ltc_textgen.data.python_docs import embedded_documents, embedded_fingerprint
from ltc_textgen.data.text_files import Piece, corpus_files, file_digest, read_pieces
from ltc_textgen.errors import DataError, UsageError

Source = Callable[[], Iterator[Piece]]
"""Starts a reading of documents from the first: parts of text, and whether a document ends with the part."""

CHARACTER_LIMIT = 4_000_000
"""Characters below which a corpus of files has characters as tokens, unless another tokenizer is chosen.

In less text than this, most pieces of a WordPiece vocabulary are too rare to be learned.
"""

HELD_OUT = 5_000_000
"""Most characters that are held out of a corpus to validate on: of a large one, a tenth would take hours to score."""

NAMES = ("auto", "wikitext-2", "embedded")
"""Corpora that have a name; anything else is a path, or an id of the hub."""

EMBEDDED_NOTE = "the embedded corpus (the English documentation inside this Python, about 1.7 MB)"


@dataclass(frozen=True)
class Corpus:
    """Text to train on and to validate on.

    Args:
        name: wikitext-2, embedded, a path or a data set id.
        fingerprint: sha256 of the content and of how it is cut into splits, in hexadecimal.
        sources: Readings of the splits `train`, `valid` and perhaps `test`.
        preferred: Tokenizer for `auto`; None: by the amount of text.
        sizes: About how many bytes of UTF-8 the splits have, where that can be told; may take a reading.
    """

    name: str
    fingerprint: str
    sources: dict[str, Source] = field(repr=False)
    preferred: str | None = None
    sizes: dict[str, Callable[[], int]] = field(default_factory=dict, repr=False)

    def size(self, split: str) -> int | None:
        """About how many bytes of UTF-8 a split has; None if nobody knows."""
        return self.sizes[split]() if split in self.sizes else None

    def pieces(self, split: str) -> Iterator[Piece]:
        """The documents of a split in parts of bounded length.

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
        return _whole(self.pieces(split))

    def train(self) -> Iterator[str]:
        """The documents to train on."""
        return self.documents("train")

    def valid(self) -> Iterator[str]:
        """The documents to validate on."""
        return self.documents("valid")

    def test(self) -> Iterator[str]:
        """The documents of the test split, for corpora that bring one."""
        return self.documents("test")

    def default_tokenizer(self) -> str:
        """What `--tokenizer auto` means here: bert for WikiText-2, char for little text, else wordpiece."""
        if self.preferred is not None:
            return self.preferred
        characters = 0
        for text, _ in self.pieces("train"):
            characters += len(text)
            if characters >= CHARACTER_LIMIT:
                return "wordpiece"
        return "char"


def load_corpus(config: DataConfig, notify: Callable[[str], None] = lambda _: None) -> Corpus:
    """The corpus that `config.data` names, with the validation text that `config.valid` names.

    `auto` is WikiText-2, if it and the BERT tokenizer (where that is wanted) are cached or the hub answers; else the
    embedded corpus, and `notify` is told so in one line.

    Raises:
        DataError: If it cannot be had or is empty; one line that says what to do.
    """
    match config.data:
        case "auto":
            corpus = _automatic(config, notify)
        case "wikitext-2":
            corpus = _from_hub(f"{hub.WIKITEXT}:{hub.WIKITEXT_2}", config, "wikitext-2")
        case "embedded":
            corpus = _embedded(config)
        case _:
            corpus = _named(config, notify)
    return corpus if config.valid is None else _with_validation(corpus, config, notify)


def documents_of(path: Path, config: DataConfig) -> Iterator[str]:
    """The documents of a file or folder, whole: to evaluate on, or as prompts.

    Raises:
        DataError: If it cannot be read, or holds no text.
    """
    source, _, _ = _files(path, config)
    return _whole(source())


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
    path = Path(config.data).expanduser()
    repository = config.data.partition(":")[0]
    local = config.data.startswith((".", "/", "~")) or "\\" in config.data or repository.count("/") != 1
    if local or _exists(path) or path.suffix in {".txt", ".jsonl", ".parquet", ".gz"}:
        if not _exists(path) and path.name == config.data and not path.suffix:
            known = did_you_mean(config.data, list(NAMES))
            raise DataError(f"{config.data!r}: no such file or folder, and no corpus of that name{known}")
        source, fingerprint, size = _files(path, config, notify)
        return _cut(Corpus(config.data, fingerprint, {"train": source}, sizes={"train": size}), config)
    try:
        return _from_hub(config.data, config, config.data)
    except DataError as error:
        raise DataError(f"'{config.data}' is no file or folder here, and as a data set of the hub: {error}") from error


def _files(
    path: Path, config: DataConfig, notify: Callable[[str], None] = lambda _: None
) -> tuple[Source, str, Callable[[], int]]:
    files = corpus_files(path, notify)

    def read() -> Iterator[Piece]:
        for file in files:
            yield from read_pieces(file, config.text_column, config.encoding_errors)

    digest = hashlib.sha256(f"{config.text_column} {config.encoding_errors}".encode())
    for file in files:
        digest.update(f"{file.suffixes[-2:]} {file_digest(file)}".encode())
    if next(read(), None) is None:
        raise DataError(f"{path}: no text in it: empty, or nothing but blanks")

    @cache
    def size() -> int:
        if all(file.suffix == ".txt" for file in files):
            return sum(file.stat().st_size for file in files)
        return sum(len(text.encode()) for text, _ in read())

    return read, digest.hexdigest(), size


def _embedded(config: DataConfig) -> Corpus:
    def read() -> Iterator[Piece]:
        return ((document, True) for document in embedded_documents())

    return _cut(Corpus("embedded", embedded_fingerprint(), {"train": read}, "wordpiece"), config)


def _from_hub(identifier: str, config: DataConfig, name: str) -> Corpus:
    wikitext = identifier.startswith(f"{hub.WIKITEXT}:")
    column = "text" if wikitext else config.text_column
    splits = hub.load_dataset(identifier) if wikitext else hub.find_dataset(identifier, column, config.streaming)
    names = chosen_splits(splits, name)

    def source(split: str) -> Source:
        make = hub.articles if wikitext else hub.row_documents
        return lambda: make(hub.rows(splits[split], column, f"{name}, {split} split"))

    digest = hashlib.sha256(f"{wikitext} {column}".encode())
    sizes = dict.fromkeys(names, 0)
    for split in sorted(names):
        found = splits[names[split]]
        if isinstance(found, KeptSplit):
            digest.update(f"{split} {found.digests}".encode())
            sizes[split] = found.bytes
            continue
        for text in hub.rows(found, column, name):
            content = text.encode()
            digest.update(len(text).to_bytes(8, "little") + content)
            sizes[split] += len(content)
    corpus = Corpus(
        name,
        digest.hexdigest(),
        {split: source(of) for split, of in names.items()},
        "bert" if identifier == f"{hub.WIKITEXT}:{hub.WIKITEXT_2}" else None,
        {split: partial(int, size) for split, size in sizes.items()},
    )
    return corpus if "valid" in names else _cut(corpus, config)


def _with_validation(corpus: Corpus, config: DataConfig, notify: Callable[[str], None]) -> Corpus:
    """The whole corpus to train on, another file or folder to validate on."""
    assert config.valid is not None
    valid, fingerprint, size = _files(Path(config.valid).expanduser(), config, notify)
    whole = corpus.sources.get("whole", corpus.sources["train"])
    sizes = {"valid": size}
    if known := corpus.sizes.get("whole", corpus.sizes.get("train")):
        sizes["train"] = known
    test = {split: source for split, source in corpus.sources.items() if split == "test"}
    combined = hashlib.sha256(f"{corpus.fingerprint} valid {fingerprint}".encode()).hexdigest()
    return Corpus(corpus.name, combined, {"train": whole, "valid": valid} | test, corpus.preferred, sizes)


def _cut(corpus: Corpus, config: DataConfig) -> Corpus:
    """Hold the last part of the text out: the first int(characters * (1 - valid_fraction)) characters train.

    Where more than `HELD_OUT` would be left, all but so many train.
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
    return Corpus(corpus.name, fingerprint, sources, corpus.preferred, sizes)


def _head(pieces: Iterator[Piece], characters: int) -> Iterator[Piece]:
    for text, ends in pieces:
        if len(text) >= characters:
            yield text[:characters], True
            return
        yield text, ends
        characters -= len(text)


def _tail(pieces: Iterator[Piece], characters: int) -> Iterator[Piece]:
    for text, ends in pieces:
        if len(text) > characters:
            yield text[characters:], ends
        characters = max(0, characters - len(text))


def _whole(pieces: Iterable[Piece]) -> Iterator[str]:
    parts: list[str] = []
    for text, ends in pieces:
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
