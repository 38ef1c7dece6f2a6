"""A corpus as token files: made once, memory-mapped, checked and used again.

    <cache>/tokens/<key>/train.bin valid.bin tokenizer.json tokenizer_config.json facts.json

The key is the sha256 of the corpus' content, of the tokenizer and of everything else the tokens depend on. The stream
of a split has a separator before each document, the first included: | the cat | a dog.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import tokenizers

from ltc_textgen.config import DataConfig, did_you_mean
from ltc_textgen.data import hub
from ltc_textgen.data.corpora import Corpus, load_corpus
from ltc_textgen.data.files import Piece, file_digest
from ltc_textgen.data.tokenizers import KINDS, TextTokenizer
from ltc_textgen.data.vocabularies import byte_tokenizer, character_tokenizer, read_tokenizer, train_wordpiece
from ltc_textgen.errors import DataError, UsageError

FORMAT = 1
"""Raised when the same corpus and tokenizer would give other tokens."""

PART = 1 << 16
"""Characters that are encoded as one text, where a tokenizer allows a cut."""

_BATCH = 1 << 21
_BLANK_AFTER_WORD = re.compile(r"(?<=\S)[ \t\n\r\u3000]")
_SPLITS = ("train", "valid")
_FILES = ("train.bin", "valid.bin", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TokenData:
    """A tokenised corpus.

    Args:
        train: Token ids to train on, one-dimensional, uint16 or uint32, read-only.
        valid: Token ids to validate on.
        tokenizer: What the ids mean.
        corpus: The text they come from.
        fingerprint: Key of the cache: changes with text, tokenizer and settings.
        valid_words: Runs of non-blank characters plus line ends of the validation text.
        valid_bytes: Its bytes in UTF-8.
        train_unknown: Unknown tokens in `train`.
        valid_unknown: Unknown tokens in `valid`.
    """

    train: np.memmap
    valid: np.memmap
    tokenizer: TextTokenizer
    corpus: Corpus
    fingerprint: str
    valid_words: int
    valid_bytes: int
    train_unknown: int
    valid_unknown: int

    @property
    def corpus_name(self) -> str:
        """wikitext-2, embedded, a path or a data set id."""
        return self.corpus.name


def cache_directory() -> Path:
    """Where token files are kept: LTC_CACHE, or ~/.cache/ltc-textgen."""
    return Path(os.environ.get("LTC_CACHE") or Path.home() / ".cache" / "ltc-textgen").expanduser()


def prepare(
    config: DataConfig,
    notify: Callable[[str], None] = lambda _: None,
    tokenizer: TextTokenizer | None = None,
    corpus: Corpus | None = None,
) -> TokenData:
    """Read, tokenise and cache a corpus, or open what is cached of it.

    Args:
        config: Corpus, tokenizer and split.
        notify: Is told in one line each what the user should know: another corpus than asked, a damaged cache.
        tokenizer: Used instead of the one that `config` names, as when a trained model goes on training.
        corpus: What `load_corpus(config)` gave, if the caller has called it.

    Raises:
        DataError: If the corpus or tokenizer cannot be had, holds too little, or the cache cannot be written.
        UsageError: If `config.tokenizer` names nothing that exists.
    """
    corpus = corpus or load_corpus(config, notify)
    name = corpus.default_tokenizer() if config.tokenizer == "auto" else config.tokenizer
    built = name in {"char", "byte", "wordpiece"}
    if tokenizer is None and not built:
        tokenizer = find_tokenizer(name)
    kind = f"{name} {config.vocabulary_size}" if tokenizer is None else tokenizer.fingerprint
    recipe = f"{FORMAT} {tokenizers.__version__} {corpus.fingerprint} {kind}"
    key = hashlib.sha256(recipe.encode()).hexdigest()
    directory = cache_directory() / "tokens" / key[:32]
    with _locked(directory):
        facts = _checked(directory, notify)
        if facts is None:
            start = time.perf_counter()
            made = tokenizer or _build(name, corpus, config.vocabulary_size)
            facts = _write(directory, corpus, made)
            train, valid, seconds = facts["train"]["tokens"], facts["valid"]["tokens"], time.perf_counter() - start
            notify(f"{corpus.name}: {train:,} tokens to train on, {valid:,} to validate on, made in {seconds:.1f} s")
        made = TextTokenizer.load(directory)
        dtype = _dtype(made)
        train_tokens, valid_tokens = (np.memmap(directory / f"{split}.bin", dtype, "r") for split in _SPLITS)
    return TokenData(
        train=train_tokens,
        valid=valid_tokens,
        tokenizer=made,
        corpus=corpus,
        fingerprint=key,
        valid_words=facts["valid"]["words"],
        valid_bytes=facts["valid"]["bytes"],
        train_unknown=facts["train"]["unknown"],
        valid_unknown=facts["valid"]["unknown"],
    )


def find_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer that a name, a path or an id of the hub stands for, if no corpus is needed to make it.

    Raises:
        DataError: If it cannot be had or is none.
        UsageError: If the name stands for nothing.
    """
    path = Path(name).expanduser()
    if name == "bert":
        return read_tokenizer(hub.tokenizer_file(hub.BERT), "bert")
    if name == "byte":
        return byte_tokenizer()
    if path.exists():
        return read_tokenizer(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return read_tokenizer(hub.tokenizer_file(name), "bert" if name == hub.BERT else "custom")
    if len(path.parts) > 1 or path.suffix:
        raise DataError(f"{name}: no such file or folder")
    raise UsageError(f"tokenizer: '{name}' is no path and no known name{did_you_mean(name, ['auto', *KINDS[:-1]])}")


def text_parts(pieces: Iterator[Piece], kind: str) -> Iterator[tuple[str, bool]]:
    """Cut documents where it does not change their tokens, into parts that are encoded each on its own.

    Characters and bytes may be cut anywhere; wordpiece and bert where blanks begin (65,536 characters without such a
    place are cut all the same); custom tokenizers get whole documents.

    Args:
        pieces: Documents in pieces of any length.
        kind: The tokenizer's kind.

    Yields:
        Text, and whether a document starts with it.
    """
    held, starts = "", True
    for text, ends in pieces:
        held += text
        if kind != "custom":
            position = 0
            while len(held) - position > PART:
                cut = PART if kind in {"char", "byte"} else _safe_cut(held[position : position + PART])
                yield held[position : position + cut], starts
                position, starts = position + cut, False
            held = held[position:]
        if ends:
            if held:
                yield held, starts
            held, starts = "", True


def _safe_cut(text: str) -> int:
    """The last place in `text` where a word or sign ends and blanks begin; the end of the text if there is none."""
    for start in (max(0, len(text) - 1024), 0):
        places = [match.start() for match in _BLANK_AFTER_WORD.finditer(text, start)]
        if places:
            return places[-1]
    return len(text)


def _build(name: str, corpus: Corpus, size: int) -> TextTokenizer:
    if name == "byte":
        return byte_tokenizer()
    if name == "wordpiece":
        return train_wordpiece((text for text, _ in text_parts(corpus.pieces("train"), name)), size)
    alphabet: set[str] = set()
    for text, _ in corpus.pieces("train"):
        alphabet.update(text)
    if not alphabet:
        raise DataError(f"{corpus.name}: no text is left to train on (see --valid-fraction)")
    return character_tokenizer(alphabet)


def _dtype(tokenizer: TextTokenizer) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if tokenizer.vocab_size < 65536 else np.uint32


def _write(directory: Path, corpus: Corpus, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Tokenise into a folder beside `directory`, which takes its place when everything is written."""
    fresh = directory.with_name(directory.name + ".new")
    with _explaining(directory):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            facts = {split: _tokenise(corpus, split, tokenizer, fresh / f"{split}.bin") for split in _SPLITS}
            tokenizer.save(fresh)
            facts["files"] = {name: _state(fresh / name) for name in _FILES}
            (fresh / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(directory, ignore_errors=True)
            fresh.replace(directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return facts


def _tokenise(corpus: Corpus, split: str, tokenizer: TextTokenizer, path: Path) -> dict[str, Any]:
    count = _Count()
    tokens = unknown = size = 0
    batch: list[tuple[str, bool]] = []
    separator = np.array([tokenizer.separator_id], dtype=_dtype(tokenizer))

    def flush(file: IO[bytes]) -> None:
        nonlocal tokens, unknown
        for ids, (_, starts) in zip(tokenizer.encode_arrays([text for text, _ in batch]), batch, strict=True):
            narrow = ids.astype(separator.dtype)
            if starts:
                separator.tofile(file)
            narrow.tofile(file)
            tokens += len(narrow) + starts
            unknown += 0 if tokenizer.unknown_id is None else int(np.count_nonzero(narrow == tokenizer.unknown_id))

    with path.open("wb") as file:
        for text, starts in text_parts(count.watch(corpus.pieces(split)), tokenizer.kind):
            batch.append((text, starts))
            size += len(text)
            if size >= _BATCH:
                flush(file)
                batch, size = [], 0
        flush(file)
    count.refuse(corpus.name, split, tokens)
    return {"tokens": tokens, "unknown": unknown, "words": count.words, "bytes": count.bytes}


class _Count:
    """Words, bytes and distinct characters of the text that passes through `watch`."""

    def __init__(self) -> None:
        self.words = self.bytes = 0
        self._characters: set[str] = set()

    def watch(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        inside = False  # the last piece ended in the middle of a word
        for text, ends in pieces:
            self.words += len(text.split()) + text.count("\n") - (inside and not text[:1].isspace())
            self.bytes += len(text.encode())
            inside = not ends and not text[-1:].isspace()
            if len(self._characters) < 2:
                self._characters.update(text)
            yield text, ends

    def refuse(self, name: str, split: str, tokens: int) -> None:
        if tokens < 2:
            what = "train on" if split == "train" else "validate on (see --valid and --valid-fraction)"
            raise DataError(f"{name}: {tokens} tokens are too few to {what}")
        if split == "train" and len(self._characters) < 2:
            raise DataError(f"{name}: the whole training text is one character repeated; there is nothing to learn")


def _state(path: Path) -> list[Any]:
    return [path.stat().st_size, file_digest(path)]


def _checked(directory: Path, notify: Callable[[str], None]) -> dict[str, Any] | None:
    """The facts of a cached corpus if all its files are as they were written, else None."""
    if not directory.is_dir():
        return None
    try:
        facts: dict[str, Any] = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
        damaged = next((name for name in _FILES if facts["files"][name] != _state(directory / name)), None)
        if damaged is None and all(split in facts for split in _SPLITS):
            return facts
    except (OSError, ValueError, KeyError, TypeError, DataError):
        damaged = "facts.json"
    notify(f"The cached tokens in {directory} are damaged ({damaged}) and are made again.")
    return None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time makes or checks one corpus."""
    from filelock import FileLock

    lock = FileLock(directory.with_name(directory.name + ".lock"))
    with _explaining(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explaining(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"cannot keep token files in {directory.parent}: {reason}; set LTC_CACHE to a folder with space"
        ) from error
