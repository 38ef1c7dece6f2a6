"""Measures of how well a model predicts a text: what is scored, and what it is divided by.

**What is scored.** The documents form one stream of tokens, with an EOS token before each:

    stream    |  the  cat  |  a  dog          ( | is the EOS token)
    scored       the  cat  |  a  dog

The first EOS token is the context of the first token and is not scored; every other token is, once. An EOS token
between documents is scored like any token, since the model has to say where a document ends; its nats count in every
measure, while words and bytes are those of the documents alone.

**With carried state** (`window=None`) the network reads the stream from the first to the last token without a reset, in
chunks that bound memory and do not change the result.

**In windows of L tokens** the state is reset every L tokens: window k reads tokens kL to kL + L - 1 of the stream and
predicts tokens kL + 1 to kL + L, so that the first token scored in a window is predicted from one token, the last from
L. The last window may be shorter. This is the loss of non-overlapping windows that models with a context of L tokens
report.

**Measures**, of the sum S of -ln p(token | context) over all scored tokens, added up in float64:

| measure         | is               | compares                                                             |
|-----------------|------------------|----------------------------------------------------------------------|
| nll_per_token   | S / tokens       | models with one tokenizer                                            |
| perplexity      | exp(S / tokens)  | models with one tokenizer                                            |
| word_perplexity | exp(S / words)   | any models on one text; words: runs of non-blanks, and line ends     |
| bits_per_byte   | S / (ln 2 bytes) | any models on one text; bytes of the documents in UTF-8              |

Line ends count as words because the published word perplexities of WikiText count its <eos>: its validation split has
213,886 words and 3,760 lines, hence the 217,646 of the literature.

A tokenizer that is not lossless (lower-cased, unknown words replaced) makes a text easier to predict. `lossless` and
`unknown_rate` report it; compare such numbers only with those of the same tokenizer.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from ltc_textgen.data.normalize import normalize
from ltc_textgen.data.tokenize import text_parts
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import DataError, LTCError, UsageError
from ltc_textgen.evaluation.scoring import score_tokens
from ltc_textgen.model.network import LiquidNetwork

PARTS_AT_ONCE = 32
"""Texts of at most `data.tokens.PART` characters that are tokenised at once."""


@dataclass(frozen=True)
class Scores:
    """What `evaluate` measures. Definitions are at the head of this module.

    Args:
        nll_per_token: Mean negative log-likelihood, nats per token.
        perplexity: Its exponential; inf beyond the range of float64.
        word_perplexity: The same per word.
        bits_per_byte: Negative log-likelihood in bits per byte of the raw text.
        tokens: Tokens scored, EOS tokens between documents included.
        words: Runs of non-blank characters, plus line ends.
        bytes: Bytes of the documents in UTF-8.
        unknown_tokens: Tokens scored that are the tokenizer's unknown token.
        lossless: Whether the tokens keep every character of the text: the tokenizer does, and none is unknown.
        window: Tokens between resets of the state; None if it was carried throughout.
    """

    nll_per_token: float
    perplexity: float
    word_perplexity: float
    bits_per_byte: float
    tokens: int
    words: int
    bytes: int
    unknown_tokens: int
    lossless: bool
    window: int | None

    @property
    def unknown_rate(self) -> float:
        """Fraction of the scored tokens that are the unknown token, 0 to 1."""
        return self.unknown_tokens / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: a perplexity beyond float64 is None."""
        values = asdict(self) | {"unknown_rate": self.unknown_rate}
        return {name: None if value == math.inf else value for name, value in values.items()}


def evaluate(
    model: LiquidNetwork,
    tokenizer: TextTokenizer,
    documents: Iterable[str],
    *,
    window: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Measure a model on a text.

    Args:
        model: Network, on any device; its mode and gradients are left as they are.
        tokenizer: The tokenizer it was trained with.
        documents: Raw texts; empty ones are left out.
        window: L, tokens between resets of the state, >= 1; None carries it throughout.
        progress: Called with the tokens scored so far and all that will be.

    Raises:
        DataError: If the documents hold no words.
        UsageError: If `window` is below 1, or the tokenizer is not the model's.
        LTCError: If a loss is not finite.
    """
    text = read_text(model, tokenizer, documents)
    return text.scores(score_tokens(model, text.tokens, window=window, progress=progress)[0], window)


@dataclass(frozen=True)
class EvaluationText:
    """A text to score a model on, as tokens, and what its loss is divided by.

    Args:
        tokens: The stream, (T,) uint32, T >= 2.
        words: Runs of non-blank characters, plus line ends.
        bytes: Bytes of the documents in UTF-8.
        unknown: Scored tokens that are the tokenizer's unknown token.
        lossless: Whether the tokens keep every character: the tokenizer does, and none is unknown.
        gzip_bits_per_byte: Size of the documents, joined and compressed with gzip -9, in bits per byte.
    """

    tokens: np.ndarray
    words: int
    bytes: int
    unknown: int
    lossless: bool
    gzip_bits_per_byte: float

    def scores(self, nll: float, window: int | None = None) -> Scores:
        """The measures that follow from a sum of -ln p over the scored tokens.

        Raises:
            LTCError: If it is not finite.
        """
        if not math.isfinite(nll):
            raise LTCError(
                f"the loss on this text is {nll}: the model's weights are broken; load an earlier checkpoint, "
                "or train again with a smaller learning rate"
            )
        count = len(self.tokens) - 1
        return Scores(
            nll_per_token=nll / count,
            perplexity=_exp(nll / count),
            word_perplexity=_exp(nll / self.words),
            bits_per_byte=nll / math.log(2) / self.bytes,
            tokens=count,
            words=self.words,
            bytes=self.bytes,
            unknown_tokens=self.unknown,
            lossless=self.lossless,
            window=window,
        )


def read_text(model: LiquidNetwork, tokenizer: TextTokenizer, documents: Iterable[str]) -> EvaluationText:
    """Documents as a model of this tokenizer is scored on them. Arguments and errors as in `evaluate`."""
    if tokenizer.vocab_size != model.settings.input_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.settings.input_size}: "
            "use the tokenizer that the model was trained with"
        )
    zipper = zlib.compressobj(9, wbits=31)  # as gzip -9, in bounded memory
    zipped = 0

    def compressed() -> Iterator[str]:
        nonlocal zipped
        for text in documents:
            for at in range(0, len(text), 2**20):
                zipped += len(zipper.compress(text[at : at + 2**20].encode()))
            yield text

    stream, words, size = tokenize(tokenizer, compressed())
    zipped += len(zipper.flush())
    if words == 0 or len(stream) < 2:
        raise DataError("the text to evaluate on is blank: give a file with words in it")
    unknown = 0 if tokenizer.unk_token_id is None else int((stream[1:] == tokenizer.unk_token_id).sum())
    return EvaluationText(stream, words, size, unknown, tokenizer.lossless and not unknown, 8 * zipped / size)


def tokenize(tokenizer: TextTokenizer, documents: Iterable[str]) -> tuple[np.ndarray, int, int]:
    """The stream of tokens that is scored, (T,) uint32, as in the token files; and the documents' words and bytes."""
    words = size = 0

    def counted() -> Iterator[tuple[str, bool]]:
        nonlocal words, size
        for text in filter(None, map(normalize, documents)):
            words += count_words(text)
            size += len(text.encode())
            yield text, True

    eos = np.array([tokenizer.eos_token_id], np.uint32)
    stream = [eos[:0]]
    parts = text_parts(counted(), tokenizer.kind)
    while group := list(islice(parts, PARTS_AT_ONCE)):
        for ids, (_, starts) in zip(tokenizer.encode_arrays([text for text, _ in group]), group, strict=True):
            stream += [eos, ids] if starts else [ids]
    return np.concatenate(stream), words, size


def count_words(text: str) -> int:
    """Words that word perplexity divides by: runs of non-blank characters, plus line ends."""
    return len(text.split()) + text.count("\n")


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
