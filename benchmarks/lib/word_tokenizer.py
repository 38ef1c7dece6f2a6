"""Word-level tokenizer of the published WikiText results: whitespace-separated words, <eos> at line ends."""

from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from ltc_textgen.config import DataConfig
from ltc_textgen.data.corpora import load_corpus
from ltc_textgen.io.atomic import write_atomic

UNKNOWN = "<unk>"
END = "<eos>"


def word_tokenizer(corpus: str, folder: Path) -> Path:
    """Write a tokenizer.json whose vocabulary is every word of the training split; returns its path.

    Other words become <unk>, which WikiText itself contains as text.
    """
    counts: Counter[str] = Counter()
    for document in load_corpus(DataConfig(data=corpus)).train():
        counts.update(document.replace("\n", f" {END} ").split())
    counts[UNKNOWN], counts[END] = max(counts[UNKNOWN], 1), max(counts[END], 1)
    vocabulary = {word: index for index, (word, _) in enumerate(counts.most_common())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace("\n", f" {END} ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = folder / "words.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, tokenizer.to_str())
    return path
