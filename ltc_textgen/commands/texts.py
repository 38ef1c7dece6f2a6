"""Which documents `ltc eval` measures."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from ltc_textgen.config import DataConfig
from ltc_textgen.data.corpora import Corpus, documents_of, load_corpus


def documents(config: DataConfig, part: str, notify: Callable[[str], None]) -> Iterator[str]:
    """The documents of a part of a corpus.

    Args:
        config: Corpus, and how training cut it.
        part: train, valid, test, or all; all of a file is the file as it is, uncut.
        notify: Is told what the user should know.
    """
    path = Path(config.data).expanduser()
    if part == "all" and path.exists():
        return documents_of(path, config)
    corpus = load_corpus(config, notify)
    if part == "all":
        return chain.from_iterable(corpus.documents(name) for name in _parts(corpus))
    return corpus.documents(part)


def _parts(corpus: Corpus) -> list[str]:
    """The splits that together are everything, none of it twice."""
    if "whole" not in corpus.sources:  # the corpus as it was before training cut a part off
        return list(corpus.sources)
    return [name for name in ("whole", "test") if name in corpus.sources]
