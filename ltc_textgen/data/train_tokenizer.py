"""Where tokenizers come from: built (char, byte), trained on a corpus (wordpiece), or read from a file."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ltc_textgen.data.normalize import normalize_lines
from ltc_textgen.data.tokenizers import (
    EOS_TOKEN,
    UNKNOWN,
    TextTokenizer,
    byte_of_character,
    json_text,
    parse_tokenizer,
)
from ltc_textgen.errors import DataError
from ltc_textgen.io.paths import os_reason

CONTINUES = "\u2581"
# Words with their leading space, numbers of up to three digits, runs of symbols, line ends, and the other blanks. A
# word is letters with their marks (vowel signs, accents) and the joiners U+200C and U+200D. Every run is cut to a
# length, since WordPiece takes quadratic time in it; the byte form stays below the model's limit.
_LETTERS = r"\p{L}[\p{L}\p{M}\x{200C}\x{200D}]{0,23}"
_WORDS = (
    rf"'(?:s|t|re|ve|m|ll|d)(?!\p{{L}})| ?{_LETTERS}| ?\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]{{1,8}}"
    r"|\n{1,4}|[^\S\n]{1,24}(?!\S)|[^\S\n]{1,24}"
)
VOCABULARY_ADVICE = (
    "a vocabulary alone is no tokenizer: a tokenizer.json is needed. Of vocab.json and merges.txt, as GPT-2 has them: "
    'python -c "from tokenizers import ByteLevelBPETokenizer as T; '
    "T.from_file('{folder}/vocab.json', '{folder}/merges.txt').save('{folder}/tokenizer.json')\""
)
_TRAINING_CHARACTERS = 50_000_000
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<|im_end|>")


def character_tokenizer(alphabet: Iterable[str]) -> TextTokenizer:
    """One token per character of `alphabet`, sorted; every other character is the unknown token."""
    characters = sorted(set(alphabet))
    vocabulary = {character: index for index, character in enumerate([*characters, EOS_TOKEN, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([EOS_TOKEN, UNKNOWN])
    return TextTokenizer(tokenizer.to_str(), "char")


def byte_tokenizer() -> TextTokenizer:
    """One token per byte of UTF-8: the id is the byte, 256 is the EOS token."""
    characters = sorted(byte_of_character().items(), key=lambda item: item[1])
    tokenizer = Tokenizer(models.BPE(dict(characters) | {EOS_TOKEN: 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS_TOKEN])
    return TextTokenizer(tokenizer.to_str(), "byte")


def train_wordpiece(texts: Iterable[str], size: int) -> TextTokenizer:
    """A WordPiece vocabulary over bytes, trained on `texts`: every text is restored exactly.

    All 256 bytes are tokens, both at the start of a word and inside it, so that no text is unknown.

    Args:
        texts: The corpus, in any cutting; the first 50 million characters are used.
        size: Tokens wanted. There are fewer if the corpus is too small, and never less than the 513 for the EOS token
            and the bytes.
    """
    alphabet = sorted(byte_of_character())
    every = [EOS_TOKEN, *alphabet, *(CONTINUES + character for character in alphabet)]
    learner = _wordpiece({EOS_TOKEN: 0})
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size, len(every)),
        min_frequency=2,
        continuing_subword_prefix=CONTINUES,
        # The trainer breaks ties by id, and numbers tokens that are not listed here in the order of a seeded hash.
        special_tokens=every,
        show_progress=False,
    )
    learner.train_from_iterator(_first(texts, _TRAINING_CHARACTERS), trainer)
    learned = learner.get_vocab(with_added_tokens=False)
    needed = set(every)
    more = [token for token in sorted(learned, key=lambda token: learned[token]) if token not in needed]
    tokenizer = _wordpiece({token: index for index, token in enumerate(every + more)})
    tokenizer.add_special_tokens([EOS_TOKEN])
    return TextTokenizer(tokenizer.to_str(), "wordpiece")


def read_tokenizer(path: Path, kind: str = "custom") -> TextTokenizer:
    """A tokenizer from a tokenizer.json, a vocab.txt of BERT, or a folder with one of them.

    Padding and truncation that the file asks for are switched off. Documents are set apart by the token of the file
    that ends a text ([SEP], </s>, <|endoftext|> …), or by a new one if it has none.

    Raises:
        DataError: If there is no such file, or it holds no usable tokenizer.
    """
    if path.is_dir():
        if (path / "tokenizer_config.json").is_file() and (path / "tokenizer.json").is_file():
            own = json.loads(json_text(path / "tokenizer_config.json")).get("ltc_textgen")
            if isinstance(own, dict):
                return TextTokenizer.load(path)
        names = {file.name.lower(): file for file in sorted(path.iterdir(), reverse=True)}
        found = next((names[name] for name in ("tokenizer.json", "vocab.txt") if name in names), None)
        if found is None and "vocab.json" in names:
            raise DataError(f"{path}: {VOCABULARY_ADVICE.format(folder=path)}")
        if found is None:
            raise DataError(f"{path}: no tokenizer.json or vocab.txt in this folder")
        return read_tokenizer(found, kind)
    if path.suffix.lower() == ".txt":
        tokenizer = _from_vocabulary(path)
    else:
        content = json_text(path)
        if "model" not in json.loads(content):
            raise DataError(f"{path}: {VOCABULARY_ADVICE.format(folder=path.parent)}")
        try:
            TextTokenizer.check(content)
            tokenizer = parse_tokenizer(content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    eos_token = next((token for token in _ENDS if token in vocabulary), EOS_TOKEN)
    tokenizer.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
    try:
        return TextTokenizer(tokenizer.to_str(), kind, eos_token)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    model = models.WordPiece(
        vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=1000, continuing_subword_prefix=CONTINUES
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(CONTINUES, ""), decoders.ByteLevel()])
    return tokenizer


def _from_vocabulary(path: Path) -> Tokenizer:
    """BERT's tokenizer from its vocab.txt: one token a line, the line number is the id."""
    try:
        lines = normalize_lines(path.read_text(encoding="utf-8")).split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({os_reason(error, path)})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    tokens = lines[:-1] if lines[-1] == "" else lines
    if len(set(tokens)) < len(tokens):
        twice = next(token for n, token in enumerate(tokens) if token in tokens[:n])
        raise DataError(f"{path}: {twice!r} is listed twice, so its id is ambiguous")
    if "[UNK]" not in tokens:
        raise DataError(f"{path}: not a BERT vocabulary (no [UNK] in it)")
    settings = path.with_name("tokenizer_config.json")
    lower = json.loads(json_text(settings)).get("do_lower_case", True) if settings.is_file() else True
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=bool(lower))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in tokens]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return
