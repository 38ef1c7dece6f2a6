"""A tokenised corpus on disk: written once, memory-mapped, verified and reused.

    <cache>/tokens/<key>/train.bin valid.bin tokenizer.json tokenizer_config.json facts.json
    <cache>/tokens/<key>.new/       the same while it is written (see `token_writer`)

The key is the SHA-256 of the corpus' content, of the tokenizer and of everything else that the tokens depend on. The
stream of a split has an EOS token before each document, the first included: | the cat | a dog.
"""

import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ltc_textgen.config import DataConfig
from ltc_textgen.data import hub
from ltc_textgen.data.batches import release_pages
from ltc_textgen.data.cache import cache_directory as cache_directory
from ltc_textgen.data.corpora import Corpus, load_corpus
from ltc_textgen.data.split_comparison import SplitComparison
from ltc_textgen.data.text_files import file_digest
from ltc_textgen.data.token_writer import Progress, write_split
from ltc_textgen.data.tokenize import Counts, text_parts, token_type
from ltc_textgen.data.tokenizers import KINDS, TextTokenizer
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer, read_tokenizer, train_wordpiece
from ltc_textgen.errors import DataError, LTCError, UsageError
from ltc_textgen.io.atomic import move_directory
from ltc_textgen.io.lock import exclusive
from ltc_textgen.io.paths import os_reason, user_path
from ltc_textgen.settings import did_you_mean

FORMAT = 4
"""Incremented when the same corpus and tokenizer give other tokens or facts than before."""

_SPLITS = ("train", "valid")
_FILES = ("train.bin", "valid.bin", "tokenizer.json", "tokenizer_config.json")
_BEGUN = "begun"
_ABANDONED = 7 * 24 * 3600.0
"""Seconds after which the unfinished files of a killed process are removed."""


@dataclass(frozen=True)
class TokenData:
    """A tokenised corpus.

    Args:
        train: Token ids to train on, one-dimensional, uint16 or uint32, read-only.
        valid: Token ids to validate on.
        tokenizer: The tokenizer of the ids.
        corpus: The text that they come from.
        fingerprint: Key of the cache; depends on text, tokenizer and settings.
        documents: Documents of the training text.
        train_characters: Characters of the training text.
        train_words: Its runs of non-blank characters plus line ends.
        valid_words: The same of the validation text.
        valid_bytes: Its bytes in UTF-8.
        train_unknown: Unknown tokens in `train`.
        valid_unknown: Unknown tokens in `valid`.
        comparison: How the validation text compares with the training text.
    """

    train: np.memmap
    valid: np.memmap
    tokenizer: TextTokenizer
    corpus: Corpus
    fingerprint: str
    documents: int
    train_characters: int
    train_words: int
    valid_words: int
    valid_bytes: int
    train_unknown: int
    valid_unknown: int
    comparison: SplitComparison

    @property
    def corpus_name(self) -> str:
        """wikitext-2, embedded, a path or a data set id."""
        return self.corpus.name


def prepare(
    config: DataConfig,
    notify: Callable[[str], None] = lambda _: None,
    tokenizer: TextTokenizer | None = None,
    corpus: Corpus | None = None,
    progress: Progress | None = None,
) -> TokenData:
    """Tokenise a corpus and cache the result, or open what is cached.

    A complete cache is used without a lock and without writing, so that it may be shared and read-only.

    Args:
        config: Corpus, tokenizer and split.
        notify: Called with one line for each thing that the user should know: a fallback corpus, a damaged cache, text
            that was changed in reading, special tokens spelled in the text, a validation text unlike the training text.
        tokenizer: Used instead of the one that `config` names, as when a trained model is trained further.
        corpus: The result of `load_corpus(config)`, if the caller has it.
        progress: Called several times a second with the state of a long tokenization.

    Raises:
        DataError: If the corpus or tokenizer is not available, holds too little, or the cache cannot be written.
        UsageError: If `config.tokenizer` names nothing that exists.
    """
    corpus = corpus or load_corpus(config, notify)
    name = corpus.default_tokenizer() if config.tokenizer == "auto" else config.tokenizer
    built = name in {"char", "byte", "wordpiece"}
    if tokenizer is None and not built:
        tokenizer = find_tokenizer(name)
    kind = f"{name} {config.vocab_size}" if tokenizer is None else tokenizer.fingerprint
    recipe = f"{FORMAT} {tokenizers.__version__} {corpus.fingerprint} {kind}"
    key = hashlib.sha256(recipe.encode()).hexdigest()
    directory = cache_directory() / "tokens" / key[:32]
    facts = _checked(directory, lambda _: None)
    if facts is None:
        with _locked(directory, notify):
            facts = _checked(directory, notify)
            if facts is None:
                start = time.perf_counter()
                make = partial(_build, name, corpus, config.vocab_size)
                facts = _write(directory, corpus, make if tokenizer is None else lambda: tokenizer, progress)
                train, valid, seconds = facts["train"]["tokens"], facts["valid"]["tokens"], time.perf_counter() - start
                notify(
                    f"{corpus.name}: {train:,} tokens to train on, {valid:,} to validate on, made in {seconds:.1f} s"
                )
    data = _open(directory, facts, corpus, key)
    for line in _remarks(facts, data):
        notify(line)
    return data


def _open(directory: Path, facts: dict[str, Any], corpus: Corpus, key: str) -> TokenData:
    tokenizer = TextTokenizer.load(directory)
    tokenizer.choose_start(facts["train"]["documents"])
    dtype = token_type(tokenizer)
    with _explaining(directory):
        train_tokens, valid_tokens = (np.memmap(directory / f"{split}.bin", dtype, "r") for split in _SPLITS)
    return TokenData(
        train=train_tokens,
        valid=valid_tokens,
        tokenizer=tokenizer,
        corpus=corpus,
        fingerprint=key,
        documents=facts["train"]["documents"],
        train_characters=facts["train"]["length"],
        train_words=facts["train"]["words"],
        valid_words=facts["valid"]["words"],
        valid_bytes=facts["valid"]["bytes"],
        train_unknown=facts["train"]["unknown"],
        valid_unknown=facts["valid"]["unknown"],
        comparison=SplitComparison(**facts["comparison"]),
    )


def _remarks(facts: dict[str, Any], data: TokenData) -> list[str]:
    """What the user should know about the text, a line each."""
    lines = [f"{data.corpus.name}: {', '.join(facts['changes'])}"] if facts["changes"] else []
    spelled = Counter(facts["train"]["spelled"]) + Counter(facts["valid"]["spelled"])
    if spelled:
        names = ", ".join(f"{token} ({count:,} times)" for token, count in spelled.most_common(4))
        lines.append(
            f"special tokens are spelled in the text and read as ordinary characters: {names}; to separate documents, "
            "give rows (JSON lines) or a file for each"
        )
    return lines + data.comparison.warnings()


def find_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer of a name (bert, byte), a path or an id of the hub.

    Raises:
        DataError: If it is not available or not a tokenizer.
        UsageError: If there is none of this name.
    """
    path = user_path(name)
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


def _build(name: str, corpus: Corpus, size: int) -> TextTokenizer:
    if name == "byte":
        return byte_tokenizer()
    if name == "wordpiece":
        return train_wordpiece((text for text, _ in text_parts(corpus.chunks("train"), name)), size)
    occurs = np.zeros(sys.maxunicode + 1, dtype=bool)
    for text, _ in corpus.chunks("train"):
        occurs[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
    if not occurs.any():
        raise DataError(f"{corpus.name}: no text is left to train on (see --valid-fraction)")
    return character_tokenizer(map(chr, np.flatnonzero(occurs).tolist()))


def _write(
    directory: Path, corpus: Corpus, make: Callable[[], TextTokenizer], progress: Progress | None
) -> dict[str, Any]:
    """Tokenise into a temporary folder, which becomes `directory` when everything is written.

    The unfinished folder of a killed process is continued. A failure that would occur again leaves nothing behind.
    """
    fresh = directory.with_name(directory.name + ".new")
    with _explaining(directory):
        try:
            tokenizer = _begun(fresh)
            if tokenizer is None:
                tokenizer = make()
                _begin(fresh, tokenizer)
            writers = {s: write_split(corpus, s, tokenizer, fresh / f"{s}.bin", progress) for s in _SPLITS}
            for split, writer in writers.items():
                _check_amount(corpus.name, split, writer.counts)
            facts: dict[str, Any] = {split: asdict(writer.counts) for split, writer in writers.items()}
            facts |= {"changes": corpus.changes(), "comparison": asdict(_compared(fresh, tokenizer, facts))}
            facts["files"] = {name: _state(fresh / name) for name in _FILES[2:]}
            facts["files"] |= {f"{split}.bin": writer.state for split, writer in writers.items()}
            for name in ("train.jsonl", "valid.jsonl", _BEGUN):
                (fresh / name).unlink()
            (fresh / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            move_directory(fresh, directory)
        except (LTCError, OSError):
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return facts


def _compared(fresh: Path, tokenizer: TextTokenizer, facts: dict[str, Any]) -> SplitComparison:
    train, valid = (np.memmap(fresh / f"{split}.bin", token_type(tokenizer), "r") for split in _SPLITS)
    rates = [facts[split]["unknown"] / facts[split]["tokens"] for split in _SPLITS]
    found = SplitComparison.of(train, valid, tokenizer.vocab_size, *rates)
    release_pages(train)
    return found


def _begin(fresh: Path, tokenizer: TextTokenizer) -> None:
    shutil.rmtree(fresh, ignore_errors=True)
    for abandoned in fresh.parent.glob("*.new"):
        with suppress(OSError):  # another process may be finishing it at this moment
            if time.time() - max(path.stat().st_mtime for path in (abandoned, *abandoned.iterdir())) > _ABANDONED:
                shutil.rmtree(abandoned, ignore_errors=True)
    fresh.mkdir(parents=True)
    tokenizer.save(fresh)
    (fresh / _BEGUN).write_text(tokenizer.fingerprint, encoding="utf-8")


def _begun(fresh: Path) -> TextTokenizer | None:
    """The tokenizer of a tokenization that was interrupted; None if there is none to resume."""
    try:
        tokenizer = TextTokenizer.load(fresh)
        return tokenizer if (fresh / _BEGUN).read_text(encoding="utf-8") == tokenizer.fingerprint else None
    except (DataError, OSError, ValueError):
        return None


def _check_amount(name: str, split: str, counts: Counts) -> None:
    if counts.tokens < 2:
        what = "train on" if split == "train" else "validate on (see --valid and --valid-fraction)"
        raise DataError(f"{name}: {counts.tokens} tokens are too few to {what}")
    if split == "train" and len(counts.characters) < 2:
        raise DataError(f"{name}: the whole training text is one character repeated; there is nothing to learn")


def _state(path: Path) -> list[Any]:
    return [path.stat().st_size, file_digest(path)]


def _checked(directory: Path, notify: Callable[[str], None]) -> dict[str, Any] | None:
    """The facts of a cached corpus if all its files have their checksums, else None."""
    if not directory.is_dir():
        return None
    try:
        facts: dict[str, Any] = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
        damaged = next((name for name in _FILES if facts["files"][name] != _state(directory / name)), None)
        if damaged is None and all(name in facts for name in (*_SPLITS, "changes", "comparison")):
            return facts
    except (OSError, ValueError, KeyError, TypeError, DataError):
        damaged = "facts.json"
    notify(f"The cached tokens in {directory} are damaged ({damaged}) and are written again.")
    return None


@contextmanager
def _locked(directory: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """One process at a time writes one tokenised corpus."""

    def waiting(seconds: float) -> None:
        if seconds < 1:
            notify(f"Another process writes the same tokens ({directory}): waiting for it.")

    with ExitStack() as stack:
        with _explaining(directory):
            stack.enter_context(exclusive(directory.with_name(directory.name + ".lock"), waiting, interval=3600.0))
        yield


@contextmanager
def _explaining(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot keep token files in {directory.parent}: {os_reason(error)}; set LTC_CACHE to a folder "
            "that has space and that you may write to"
        ) from error
