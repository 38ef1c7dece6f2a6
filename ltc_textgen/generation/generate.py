"""Write text: read a prompt in chunks, then one token at a time with memory and work that do not grow.

A text ends with finish_reason "stop" at a stop string (which is not part of the text) or at the separator, the token
that the model saw between the documents of its training text (`ignore_separator`: it is never drawn); otherwise with
"length" after `max_tokens`.
Several samples of one prompt are written side by side: the prompt is read once and its state is forked. Sample i draws
from numbers of its own, made from (seed, i); its text is the same with or without the others beside it, except where
the rounding of a larger matrix product tips a draw that was on the edge.
"""

import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import UsageError
from ltc_textgen.generation.engines import Engine, open_writer
from ltc_textgen.generation.stop_strings import StopScanner
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.model.text_state import TextState

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """A part of one sample's text, as it is made.

    Args:
        sample: Number of the sample, from 0.
        text: Text to append; may be empty in the last piece.
        tokens: Tokens drawn for this sample so far, a separator that ended it included.
        seconds: Time since the prompt was read.
        prompt_tokens: Tokens read before the first was drawn.
        seed: Seed of the generation.
        finish_reason: Set in the last piece of a sample and in no other.
    """

    sample: int
    text: str
    tokens: int
    seconds: float
    prompt_tokens: int
    seed: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """The whole text of one sample, without the prompt. Fields as in `Piece`; `seconds` is when it was finished."""

    sample: int
    text: str
    tokens: int
    seconds: float
    prompt_tokens: int
    seed: int
    finish_reason: FinishReason

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this sample by its own time; samples side by side each have this speed."""
        return self.tokens / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


def generate(
    model: LiquidNetwork,
    tokenizer: TextTokenizer,
    prompt: str = "",
    sampling: SamplingConfig | None = None,
    *,
    state: TextState | LiquidState | None = None,
    engine: Engine = "auto",
    notify: Callable[[str], None] = warnings.warn,
) -> list[Completion]:
    """Write `sampling.num_samples` continuations of a prompt. Arguments and errors as in `generate_stream`."""
    parts: dict[int, list[str]] = {}
    last: dict[int, Piece] = {}
    for piece in generate_stream(model, tokenizer, prompt, sampling, state=state, engine=engine, notify=notify):
        parts.setdefault(piece.sample, []).append(piece.text)
        last[piece.sample] = piece
    return [Completion(**(vars(last[sample]) | {"text": "".join(parts[sample])})) for sample in sorted(last)]


def generate_stream(
    model: LiquidNetwork,
    tokenizer: TextTokenizer,
    prompt: str = "",
    sampling: SamplingConfig | None = None,
    *,
    state: TextState | LiquidState | None = None,
    engine: Engine = "auto",
    notify: Callable[[str], None] = warnings.warn,
) -> Iterator[Piece]:
    """Continue a prompt, yielding text as it is made.

    The pieces of a sample, joined, are its text; the last one has a finish_reason. Text that may turn out to be the
    beginning of a stop string, or of a character of several bytes, is held back until that is known. While the
    iterator is in use the model is in evaluation mode; when it ends or is closed, the mode is what it was.

    Args:
        model: Network, on any device.
        tokenizer: The tokenizer it was trained with.
        prompt: Text to continue. If empty, the model starts where a document does: after a separator.
        sampling: How to draw, how much, and where to stop; the defaults of `SamplingConfig` if None.
        state: What was read before the prompt, of one sequence; nothing if None. With a `TextState` (see `states`) an
            empty prompt goes on where that text ends.
        engine: What computes: torch (any model, any device), native (see `native`, faster on the CPU), int8 (native
            with weights of 8 bits, which changes the text), or auto: native where it can, torch elsewhere.
        notify: Called with a sentence when a part of the prompt is unknown to the tokenizer.

    Raises:
        UsageError: At once, if the prompt holds no token, or the tokenizer is not the model's; when it runs, if the
            state is not one sequence of this model, or the native decoder is asked for and cannot decode this model.
        LogitsError: While running, if the model's weights are broken.
    """
    sampling = sampling or SamplingConfig()
    sizes = {tokenizer.vocab_size, model.settings.input_size, model.settings.vocabulary}
    if len(sizes) > 1:
        raise UsageError(
            f"the tokenizer knows {tokenizer.vocab_size} tokens, the model reads {model.settings.input_size} and "
            f"writes {model.settings.vocabulary}: use the tokenizer that the model was trained with"
        )
    if not isinstance(state, TextState):
        return _stream(model, tokenizer, encode_prompt(tokenizer, prompt, notify), sampling, state, engine)
    state.require_model(model)
    if state.batch_size != 1:
        raise UsageError(f"state: expected one text, got {state.batch_size}: choose one with select")
    ids = [int(state.last), *(encode_prompt(tokenizer, prompt, notify) if prompt else [])]
    return _stream(model, tokenizer, ids, sampling, state.liquid, engine)


def encode_prompt(tokenizer: TextTokenizer, prompt: str, notify: Callable[[str], None]) -> list[int]:
    """Token ids of a prompt, at least one.

    Args:
        tokenizer: Its unknown token, if it has one, stands for what it does not know.
        prompt: Any text; the empty one gives the separator.
        notify: Called with a sentence that names the characters that became the unknown token.

    Raises:
        UsageError: If a text that is not empty has no tokens.
    """
    if not prompt:
        return [tokenizer.separator_id]
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UsageError(
            f"prompt: the {tokenizer.kind} tokenizer finds no token in {prompt[:40]!r}; "
            "write some words, or leave the prompt empty"
        )
    unknown = 0 if tokenizer.unknown_id is None else ids.count(tokenizer.unknown_id)
    if unknown:
        strange = [c for c in dict.fromkeys(prompt) if tokenizer.unknown_id in tokenizer.encode(c)]
        names = f" ({', '.join(map(repr, strange[:10]))}{', ...' if len(strange) > 10 else ''})" if strange else ""
        notify(f"prompt: {unknown} of {len(ids)} tokens are unknown to the {tokenizer.kind} tokenizer{names}")
    return ids


class _Sample:
    """The text side of one sample: decoding, stop strings, and when it ends."""

    def __init__(self, number: int, tokenizer: TextTokenizer, prompt: list[int], sampling: SamplingConfig) -> None:
        self.number, self.tokens = number, 0
        self._separator, self._limit = tokenizer.separator_id, sampling.max_tokens
        self._decoder, self._scanner = tokenizer.stream(), StopScanner(sampling.stop)
        # The decoder reads the prompt too: whether the first word needs a space before it depends on what came before.
        shown = "".join([self._decoder.push(token) for token in prompt])
        self._prompt_held = tokenizer.decode(prompt)[len(shown) :].strip()

    def push(self, token: int) -> tuple[str, FinishReason | None]:
        """Text that this token lets through, and why the sample ends with it, if it does."""
        self.tokens += 1
        ends = token == self._separator
        text = self._scanner.push(self._own("" if ends else self._decoder.push(token)))
        if not self._scanner.stopped and (ends or self.tokens == self._limit):
            text += self._scanner.push(self._own(self._decoder.flush()))
            if not self._scanner.stopped:
                return text + self._scanner.flush(), "stop" if ends else "length"
        return text, "stop" if self._scanner.stopped else None

    def _own(self, text: str) -> str:
        """Without the end of the prompt, if the decoder had held that back."""
        if text and self._prompt_held:
            held, self._prompt_held = self._prompt_held, ""
            if text.lstrip().startswith(held):
                return text.lstrip().removeprefix(held)
        return text


def _stream(
    model: LiquidNetwork,
    tokenizer: TextTokenizer,
    prompt: list[int],
    sampling: SamplingConfig,
    state: LiquidState | None,
    engine: Engine,
) -> Iterator[Piece]:
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    samples = [_Sample(i, tokenizer, prompt, sampling) for i in range(sampling.num_samples)]
    with evaluating(model):
        writer = open_writer(model, tokenizer.separator_id, prompt, sampling, seed, state, engine)
        start = time.perf_counter()
        while samples:
            tokens = writer.draw()
            going = list(range(len(samples)))
            for column in tokens.T.tolist():
                for row in list(going):
                    sample = samples[row]
                    text, reason = sample.push(column[row])
                    if text or reason:
                        seconds = time.perf_counter() - start
                        yield Piece(sample.number, text, sample.tokens, seconds, len(prompt), seed, reason)
                    if reason is not None:
                        going.remove(row)
            if len(going) < len(samples):
                samples = [samples[row] for row in going]
                writer.keep(going)
