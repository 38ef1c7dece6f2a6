"""Token ids back to text, one id at a time.

A stream holds back what it cannot write yet (half of a character, a quote that may open or close) and `flush` gives
the rest. `decode` of a whole list runs the same stream, so what is shown while a text is made is the text that results.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

_APOSTROPHE_ENDINGS = {"s", "t", "m", "d", "ll", "re", "ve"}
_CLOSING = set(".,;:!?)]}%’”…")
_OPENING = set("([{$£€#‘“")
# WikiText writes 1 @,@ 000 and well @-@ known for 1,000 and well-known.
_WIKITEXT_JOINTS = {"-", ",", "."}


class StreamDecoder(ABC):
    """Turns ids into text as they come: "".join(push(id) for each id) + flush() is the whole text."""

    @abstractmethod
    def push(self, token: int) -> str:
        """Take one id; return the text that is now certain (may be empty)."""

    def push_all(self, tokens: Sequence[int]) -> str:
        """Take some ids; return the text that is now certain."""
        return "".join([self.push(token) for token in tokens])

    @abstractmethod
    def flush(self) -> str:
        """End of the ids: return the text that was held back."""

    @abstractmethod
    def fork(self) -> "StreamDecoder":
        """A second decoder that has taken the same ids."""


class ByteStream(StreamDecoder):
    """Tokens that stand for bytes of UTF-8; a character may be spread over several.

    Args:
        table: The bytes of every id; empty for ids that decode to nothing.
    """

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._table[token])

    def push_all(self, tokens: Sequence[int]) -> str:
        return self._utf8.decode(b"".join([self._table[token] for token in tokens]))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)

    def fork(self) -> "ByteStream":
        other = ByteStream(self._table)
        other._utf8.setstate(self._utf8.getstate())
        return other


class WordStream(StreamDecoder):
    """BERT tokens: words separated by spaces, `##` tokens joined, punctuation set as in print.

    BERT forgets where spaces were, so they are guessed: none before . , ; : ! ? and closing brackets, none after
    opening ones, quotes open and close in turn, `don ' t` becomes `don't`, and WikiText's `1 @,@ 000` becomes `1,000`.

    Args:
        pieces: The text of every id; empty for ids that decode to nothing.
        prefix: Marks a token that continues a word.
    """

    def __init__(self, pieces: Sequence[str], prefix: str = "##") -> None:
        self._pieces, self._prefix = pieces, prefix
        self._held: list[str] = []
        self._glue = True  # the next token follows without a space
        self._open_quotes: set[str] = set()

    def push(self, token: int) -> str:
        piece = self._pieces[token]
        if not piece:
            return ""
        if piece.startswith(self._prefix) and len(piece) > len(self._prefix):
            # What is held is no contraction then: ' s ##ome opens a quotation.
            return self._spell() + self._continue(piece[len(self._prefix) :])
        self._held.append(piece)
        return self._settle()

    def flush(self) -> str:
        return self._release()

    def fork(self) -> "WordStream":
        other = WordStream(self._pieces, self._prefix)
        other._held, other._glue, other._open_quotes = [*self._held], self._glue, {*self._open_quotes}
        return other

    def _settle(self) -> str:
        """Write the held tokens that do not depend on what follows."""
        held = self._held
        match held:
            case ["@"] | ["'"]:
                return ""
            case ["@", joint] if joint in _WIKITEXT_JOINTS:
                return ""
            case ["'", ending] if ending in _APOSTROPHE_ENDINGS:
                return ""
            case ["@", joint, "@"] if joint in _WIKITEXT_JOINTS:
                held.clear()
                return self._continue(joint, glue=True)
            case [_, *_, last]:
                held.pop()
                text = self._release()
                held.append(last)
                return text + self._settle()
        return self._release()

    def _release(self) -> str:
        """Write all that is held; an apostrophe and its ending as a contraction."""
        match self._held:
            case ["'", ending] if ending in _APOSTROPHE_ENDINGS and not self._glue:
                self._held.clear()
                return self._continue("'" + ending)
        return self._spell()

    def _spell(self) -> str:
        """Write all held tokens."""
        text = "".join(self._write(piece) for piece in self._held)
        self._held.clear()
        return text

    def _continue(self, text: str, glue: bool = False) -> str:
        self._glue = glue
        return text

    def _write(self, piece: str) -> str:
        if piece in {'"', "'"}:
            closes = piece in self._open_quotes
            self._open_quotes ^= {piece}
            space = "" if closes or self._glue else " "
            self._glue = not closes
            return space + piece
        space = "" if self._glue or piece in _CLOSING else " "
        self._glue = piece in _OPENING
        return space + piece


class WindowStream(StreamDecoder):
    """Any other tokenizer, through its own decoder on a short window of ids.

    The decoder may write a token differently after others (a leading space), so each window starts some ids back and
    what those write is cut off again.

    Args:
        decode: The tokenizer's decoder of a list of ids.
        silent: Ids that write nothing.
    """

    def __init__(self, decode: Callable[[list[int]], str], silent: frozenset[int]) -> None:
        self._decode, self._silent = decode, silent
        self._ids: list[int] = []
        self._known = 0  # ids of the window whose text was written

    def push(self, token: int) -> str:
        if token in self._silent:
            return ""
        self._ids.append(token)
        text = self._rest()
        # A text that ends in U+FFFD may be half a character; four bytes later it is none.
        if not text or (text.endswith("�") and len(self._ids) - self._known < 4):
            return ""
        self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return text

    def flush(self) -> str:
        text = self._rest()
        self._ids, self._known = [], 0
        return text

    def fork(self) -> "WindowStream":
        other = WindowStream(self._decode, self._silent)
        other._ids, other._known = [*self._ids], self._known
        return other

    def _rest(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._known])) :]
