"""The tokenizer that `AutoTokenizer` gives for a run: that of transformers, which names what it does not know."""

import re
import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from transformers import BatchEncoding, PreTrainedTokenizerFast

from ltc_textgen.data.tokenizers import listed


class LTCTokenizer(PreTrainedTokenizerFast):
    """transformers' tokenizer of a tokenizer.json, with a warning about characters that become the unknown token.

    After a prompt that is unknown to it a network writes anything, which looks like a bad model. Each character is
    named once, so that a long corpus gives few warnings.
    """

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **options: Any) -> BatchEncoding:
        if strange := self._unknown_characters(text, text_pair):
            warnings.warn(f"characters unknown to the tokenizer: {listed(strange)}", stacklevel=3)
        return super()._encode_plus(text, text_pair, *args, **options)

    def _unknown_characters(self, *texts: Any) -> list[str]:
        """The unknown characters of texts, special tokens that they spell aside, without those met before."""
        if self.unk_token_id is None:
            return []
        seen = _SEEN.setdefault(self, set())
        special = re.compile("|".join(map(re.escape, self.added_tokens_encoder)) or r"(?!)")
        rest = "".join(special.sub("", part) for part in _parts(texts))
        new = [c for c in dict.fromkeys(rest) if c not in seen and not "\ud800" <= c <= "\udfff"]
        seen.update(new)
        encodings = self.backend_tokenizer.encode_batch(new, add_special_tokens=False)
        return [c for c, encoding in zip(new, encodings, strict=True) if self.unk_token_id in encoding.ids]


_SEEN: WeakKeyDictionary[LTCTokenizer, set[str]] = WeakKeyDictionary()
"""Characters that a tokenizer has met. Not in the tokenizer: `datasets` finds its caches by a digest of the object."""


def _parts(texts: Any) -> Iterator[str]:
    """The strings of a text, of a batch, or of texts that were split into words."""
    if isinstance(texts, str):
        yield texts
    elif isinstance(texts, list | tuple):
        for text in texts:
            yield from _parts(text)
