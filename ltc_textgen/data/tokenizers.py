"""One tokenizer class for every kind: text to ids, ids to text (whole or streamed), saved and loaded as tokenizer.json.

Encoding is done by the Rust library `tokenizers`; loading needs neither transformers nor a network.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ltc_textgen.data.detokenize import ByteStream, StreamDecoder, WindowStream, WordStream
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.io.output import one_line
from ltc_textgen.io.paths import os_reason, special_file

EOS_TOKEN = "<|separator|>"
UNKNOWN = "<|unknown|>"
KINDS = ("bert", "char", "byte", "wordpiece", "custom")
MOST_TOKENS = 1 << 23
"""Most token ids of a vocabulary; the largest that are published have about a million."""

MOST_BYTES = 1 << 28
"""Most bytes of a tokenizer.json."""

FEW_DOCUMENTS = 20
"""Documents below which a text without a prompt does not start after the EOS token."""

START_TEXTS = ("\n", ".")
"""What stands before the beginning of something, of which the first that the tokenizer knows is taken."""

_MARKUP = re.compile(r"<\|\w{1,40}\|>")
_PROBE = "Ab  c,\tdon't\n\n 1,000 é😀\u0301 \u2028x\r\n — [UNK] <s> ▁_ ##"


class TextTokenizer:
    """Text to token ids and back.

    Args:
        content: A tokenizer.json.
        kind: What it is: bert, char, byte, wordpiece, or custom for any other.
        eos_token: EOS token, which precedes every document of a token file; it decodes to nothing.

    Raises:
        DataError: If the content is no tokenizer, holds nothing but special tokens, lacks the EOS token, or has ids
            that are too large, not unique or mostly unused.
    """

    def __init__(self, content: str, kind: str, eos_token: str = EOS_TOKEN) -> None:
        parts = _validated(content)
        self._tokenizer = parse_tokenizer(content)
        # Text that spells a special token is ordinary text.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.content, self.kind, self.eos_token = content, kind, eos_token
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        _check_ids(vocabulary)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self._special = {
            index: token.content for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        if len(vocabulary) <= len(self._special):
            raise DataError(
                f"the tokenizer has {len(vocabulary)} tokens, all of them special: its vocabulary is missing"
            )
        if eos_token not in vocabulary:
            raise DataError(f"the tokenizer has no EOS token {eos_token!r}")
        self.eos_token_id: int = vocabulary[eos_token]
        self.start_id: int = self.eos_token_id
        try:
            unknown = _unknown_token(parts["model"])
            self.unk_token_id: int | None = vocabulary.get(unknown) if unknown is not None else None
            self._texts = [self._tokenizer.id_to_token(index) or "" for index in range(self.vocab_size)]
            self._silent = frozenset(i for i in (*self._special, self.eos_token_id) if i != self.unk_token_id)
            self._style, self._table = self._decoding(parts)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"not a usable tokenizer.json ({type(error).__name__}: {one_line(error)})") from error
        self._codes: np.ndarray | None = None
        self._check_kind()

    @staticmethod
    def check(content: str) -> None:
        """Raises DataError if the ids of a tokenizer.json are too large, not unique or mostly unused."""
        _validated(content)

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer.json, in hexadecimal."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def choose_start(self, documents: int | None) -> None:
        """Choose the token that a text without a prompt starts after (`start_id`): the EOS token, which precedes every
        document, unless it is rare because the training text has few documents; then a line end.

        Args:
            documents: Of the training text; None if it is not known.
        """
        self.start_id = self.eos_token_id
        if documents is None or documents >= FEW_DOCUMENTS:
            return
        for text in START_TEXTS:
            ids = self.encode(text)
            if ids and ids[-1] != self.unk_token_id:
                self.start_id = ids[-1]
                return

    @property
    def lossless(self) -> bool:
        """True if decoding restores every text exactly (char: every text of known characters)."""
        if self.kind in {"char", "byte", "wordpiece"}:
            return True
        return self.decode(self.encode(_PROBE)) == _PROBE

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; no special tokens are added.

        Raises:
            UsageError: If the text holds half of a surrogate pair, which is no character.
        """
        return self.encode_arrays([text])[0].tolist()

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text as one-dimensional uint32 arrays, made with all cores."""
        try:
            if self.kind == "byte":
                return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]
            if self.kind == "char":
                codes = self._character_codes()
                return [codes[np.frombuffer(text.encode("utf-32-le"), np.uint32)] for text in texts]
            for text in texts:
                text.encode()
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except UnicodeEncodeError as error:
            raise UsageError(f"text: character {error.start} is half of a surrogate pair, not a character") from error
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def unknown_characters(self, text: str) -> list[str]:
        """The different characters of a text that become the unknown token, in order of appearance."""
        if self.unk_token_id is None or self.kind in {"byte", "wordpiece"}:
            return []
        characters = list(dict.fromkeys(text))
        found = self.encode_arrays([c for c in characters if not "\ud800" <= c <= "\udfff"])
        plain = iter(found)
        return [c for c in characters if "\ud800" <= c <= "\udfff" or self.unk_token_id in next(plain)]

    def unwritable_characters(self, text: str) -> list[str]:
        """The different characters of a text that no token writes, so that a stop string with one never occurs."""
        written = self.decode(self.encode(text))
        missing = [c for c in dict.fromkeys(text) if c not in written]
        # A lossy tokenizer drops a blank at an end, which it can write between words.
        return [c for c in missing if c not in self.decode(self.encode(f"a{c}a"))]

    def spelled_specials(self, text: str) -> dict[str, int]:
        """How often a text spells a special token of this tokenizer, or markup such as <|im_start|>.

        It is read as ordinary characters: special tokens never come from text.
        """
        found: dict[str, int] = {}
        if "<|" in text:
            for token in _MARKUP.findall(text):
                found[token] = found.get(token, 0) + 1
        for token in self._special.values():
            if token not in found and token in text:
                found[token] = text.count(token)
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; EOS and other special tokens decode to nothing.

        Raises:
            UsageError: If an id is not in the vocabulary.
        """
        ids = list(ids)
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            raise UsageError(f"token ids must be in 0..{self.vocab_size - 1}, got {min(ids)}..{max(ids)}")
        stream = self.stream()
        return "".join([stream.push(index) for index in ids]) + stream.flush()

    def stream(self) -> StreamDecoder:
        """A decoder that takes one id at a time; its texts, joined, are `decode` of all ids."""
        if self._style == "bytes":
            return ByteStream(self._table)
        if self._style == "words":
            return WordStream([token.decode() for token in self._table], self._prefix)
        return WindowStream(lambda ids: self._tokenizer.decode(ids, skip_special_tokens=False), self._silent)

    def decoding_table(self) -> dict[str, Any]:
        """What a decoder in a program without this package needs: JSON values.

        `style` is bytes (`pieces`: the bytes of every id, in hexadecimal), words (`pieces`: the text of every id;
        `prefix` marks one that continues a word) or window (`silent`: ids that decode to nothing).
        """
        if self._style == "bytes":
            return {"style": "bytes", "pieces": [token.hex() for token in self._table]}
        if self._style == "words":
            pieces = [token.decode() for token in self._table]
            return {"style": "words", "pieces": pieces, "prefix": self._prefix}
        return {"style": "window", "silent": sorted(self._silent)}

    def token(self, index: int) -> str:
        """The token as it stands in the vocabulary."""
        return self._texts[index]

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers.AutoTokenizer loads too.

        Each is replaced atomically, and not written if it has this content already.

        Raises:
            LTCError: If there is no space or no permission.
        """
        unknown = None if self.unk_token_id is None else self._texts[self.unk_token_id]
        settings = {
            # Of hf/tokenizer.py; without the package AutoTokenizer takes its own class for one that it does not know.
            "tokenizer_class": "LTCTokenizer",
            "bos_token": self.eos_token,
            "eos_token": self.eos_token,
            "pad_token": self.eos_token,
            "unk_token": unknown,
            "padding_side": "left",
            "model_max_length": 10**15,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
            "ltc_textgen": {"kind": self.kind, "eos_token": self.eos_token},
        }
        directory.mkdir(parents=True, exist_ok=True)
        contents = {"tokenizer.json": self.content, "tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}
        for name, content in contents.items():
            path = directory / name
            if not (path.is_file() and path.read_bytes() == content.encode()):
                write_atomic(path, content)

    @classmethod
    def load(cls, directory: Path) -> "TextTokenizer":
        """Load the files that `save` wrote.

        Raises:
            DataError: If a file is missing or invalid; the message names it.
        """
        content = json_text(directory / "tokenizer.json")
        settings = json.loads(json_text(directory / "tokenizer_config.json")).get("ltc_textgen")
        if not isinstance(settings, dict) or settings.get("kind") not in KINDS:
            raise DataError(f"{directory / 'tokenizer_config.json'}: not written by ltc (no 'ltc_textgen' entry)")
        eos_token = settings.get("eos_token", settings.get("separator", EOS_TOKEN))  # its name in earlier versions
        if not isinstance(eos_token, str):
            raise DataError(f"{directory / 'tokenizer_config.json'}: eos_token: expected a text, got {eos_token!r:.50}")
        try:
            return cls(content, settings["kind"], eos_token)
        except DataError as error:
            raise DataError(f"{directory / 'tokenizer.json'}: {error}") from error

    def _check_kind(self) -> None:
        """Raises DataError if the vocabulary is not what the kind promises, as in a file that was changed."""
        if self.kind == "char" and self.unk_token_id is None:
            raise DataError("the tokenizer is called char, but has no unknown token")
        if self.kind == "byte" and self._table[:256] != [bytes([byte]) for byte in range(256)]:
            raise DataError("the tokenizer is called byte, but its first 256 tokens are not the bytes")

    def _character_codes(self) -> np.ndarray:
        """Id of every code point, (0x110000,)."""
        if self._codes is None:
            self._codes = np.full(0x110000, self.unk_token_id, dtype=np.uint32)
            for index, token in enumerate(self._texts):
                if len(token) == 1:
                    self._codes[ord(token)] = index
        return self._codes

    def _decoding(self, parts: dict[str, Any]) -> tuple[str, list[bytes]]:
        """How ids become text (bytes, words or window), and the bytes of every id."""
        model = parts["model"]
        types = _decoder_types(parts.get("decoder"))
        self._prefix = model.get("continuing_subword_prefix") or ""
        added = {token["id"] for token in parts.get("added_tokens", [])}
        if self.kind == "char":
            table = [
                b"\xef\xbf\xbd" if i == self.unk_token_id else token.encode() for i, token in enumerate(self._texts)
            ]
            style = "bytes"
        elif "ByteLevel" in types:
            prefix = self._prefix if model.get("type") == "WordPiece" else ""
            of = byte_of_character()
            table = [
                token.encode() if index in added else _token_bytes(token.removeprefix(prefix), of)
                for index, token in enumerate(self._texts)
            ]
            style = "bytes"
        else:
            table = [token.encode() for token in self._texts]
            words = model.get("type") == "WordPiece" and self._prefix and types in ([], ["WordPiece"])
            style = "words" if words else "window"
        for index in self._silent:
            table[index] = b""
        return style, table


def listed(characters: Sequence[str]) -> str:
    """The first ten of some characters, as a message names them.

    >>> listed("Zü")
    "'Z', 'ü'"
    """
    return ", ".join(map(repr, characters[:10])) + (", ..." if len(characters) > 10 else "")


def parse_tokenizer(content: str) -> Tokenizer:
    """The Rust library's tokenizer of a tokenizer.json.

    Raises:
        DataError: If it is none.
    """
    try:
        return Tokenizer.from_str(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust side raises bare Exception, and BaseException where it panics
        raise DataError(f"not a tokenizer.json ({one_line(error)})") from error


def _validated(content: str) -> dict[str, Any]:
    """The JSON of a tokenizer, checked for what takes memory before it is seen to be wrong."""
    try:
        parts = json.loads(content)
        model = parts["model"]
        vocabulary = model.get("vocab", {})
        added = [(token["content"], token["id"]) for token in parts.get("added_tokens") or []]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a tokenizer.json ({type(error).__name__}: {one_line(error)})") from error
    if wrong := [token for token, _ in added if not isinstance(token, str)]:
        raise DataError(f"not a tokenizer.json (added token {wrong[0]!r:.50}: expected a text)")
    if isinstance(vocabulary, dict):
        ids = {**vocabulary, **dict(added)}
        if not all(isinstance(index, int) and 0 <= index < MOST_TOKENS for index in ids.values()):
            token, index = next((t, i) for t, i in ids.items() if not (isinstance(i, int) and 0 <= i < MOST_TOKENS))
            raise DataError(f"token {token!r} has the id {index}: expected a number from 0 to {MOST_TOKENS - 1}")
        _check_ids(ids)
    return dict(parts)


def _check_ids(ids: dict[str, int]) -> None:
    """Raises DataError if two tokens have one id, or most ids stand for no token."""
    if len(set(ids.values())) < len(ids):
        seen: dict[int, str] = {}
        for token, index in ids.items():
            if index in seen:
                raise DataError(f"tokens {seen[index]!r} and {token!r} have the same id {index}")
            seen[index] = token
    largest = max(ids.values(), default=0)
    if largest >= min(2 * len(ids) + 1024, MOST_TOKENS):
        raise DataError(f"the tokenizer has {len(ids):,} tokens, but ids up to {largest:,}: its ids have large gaps")


def byte_of_character() -> dict[str, int]:
    """The byte that each of the 256 characters of a byte-level vocabulary stands for.

    Source: GPT-2's byte encoder: printable Latin-1 characters stand for themselves, the others are counted up
    from U+0100.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def json_text(path: Path) -> str:
    """The text of a JSON file that holds an object; a byte order mark is removed.

    Raises:
        DataError: If the file is missing, unreadable or no JSON object; one line that names it.
    """
    try:
        kind = special_file(path)
        if kind is not None:
            raise DataError(f"{path}: {kind}, not a file")
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes are more than any tokenizer has")
        content = path.read_bytes().decode("utf-8-sig")
        if not isinstance(json.loads(content), dict):
            raise DataError(f"{path}: expected a JSON object")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({os_reason(error, path)})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({one_line(error)})") from error
    return content


def _token_bytes(token: str, of: dict[str, int]) -> bytes:
    return bytes(of[c] for c in token) if all(c in of for c in token) else token.encode()


def _unknown_token(model: dict[str, Any]) -> str | None:
    if model.get("type") == "Unigram":
        index = model.get("unk_id")
        return None if index is None else str(model["vocab"][index][0])
    token = model.get("unk_token")
    return None if token is None else str(token)


def _decoder_types(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [kind for part in decoder["decoders"] for kind in _decoder_types(part)]
    return [str(decoder["type"])]
