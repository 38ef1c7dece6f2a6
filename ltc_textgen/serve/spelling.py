r"""A text for every token, different from those of all others: clients use them as keys.

the text of the token                  where it has one of its own that is whole characters
bytes:\xe2\x80                          a part of a character, as OpenAI writes it
its entry in the vocabulary            special tokens, WordPiece, and all others; token_id:N if that is taken
"""

from collections import Counter

from ltc_textgen.data.tokenizers import TextTokenizer


def spellings(tokenizer: TextTokenizer) -> list[str]:
    """The spelling of every id; see the module."""
    table = tokenizer.decoding_table()
    entries = [tokenizer.token(index) for index in range(tokenizer.vocab_size)]
    if table["style"] != "bytes":
        return _distinct(entries, entries)
    return _distinct([_of_bytes(bytes.fromhex(piece)) for piece in table["pieces"]], entries)


def _of_bytes(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _distinct(texts: list[str], entries: list[str]) -> list[str]:
    """Texts, but for those that are empty or not unique: the entries, or numbers."""
    counts = Counter(texts)
    chosen = [text if text and counts[text] == 1 else entry for text, entry in zip(texts, entries, strict=True)]
    counts = Counter(chosen)
    return [text if text and counts[text] == 1 else f"token_id:{index}" for index, text in enumerate(chosen)]
