"""Text generation: the prompt is read in chunks, then tokens are drawn with constant memory and work per token.

A text ends with finish_reason "stop" at a stop string (which is not part of the text) or at the EOS token, the token
between the documents of the training text (`ignore_eos`: it is never drawn); otherwise with "length" after
`max_tokens`. A text holds whole characters only: the bytes of one that is not complete at its end are left out.

Several samples of one prompt are generated as one batch: the prompt is read once and its state is copied. Sample i
draws from its own random numbers, seeded by (seed, i); its text is the same in a batch of any size, except where the
rounding of a larger matrix product changes a draw near the boundary between two tokens.
"""

import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.normalize import normalize
from ltc_textgen.data.tokenizers import TextTokenizer, listed
from ltc_textgen.errors import UsageError
from ltc_textgen.generation.engines import EngineName, Request, open_engine
from ltc_textgen.generation.sample_text import FinishReason, SampleText
from ltc_textgen.memory import Mixture
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.model.text_state import TextState


@dataclass(frozen=True)
class TextChunk:
    """A part of one sample's text, as it is generated.

    Args:
        sample: Number of the sample, from 0.
        text: Text to append; may be empty in the last chunk.
        tokens: Tokens drawn for this sample so far, including an EOS token that ended it.
        seconds: Time since the prompt was read.
        prompt_tokens: Tokens read before the first was drawn.
        seed: Seed of the generation.
        finish_reason: Set in the last chunk of a sample and in no other.
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
    """The text of one sample, without the prompt. Fields as in `TextChunk`; `seconds` is the time when it ended."""

    sample: int
    text: str
    tokens: int
    seconds: float
    prompt_tokens: int
    seed: int
    finish_reason: FinishReason

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this sample over its own time, which samples of one batch have in common."""
        return self.tokens / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of JSON values."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


def generate(
    model: LiquidNetwork,
    tokenizer: TextTokenizer,
    prompt: str = "",
    sampling: SamplingConfig | None = None,
    *,
    state: TextState | LiquidState | None = None,
    memory: Mixture | None = None,
    engine: EngineName = "auto",
    notify: Callable[[str], None] = warnings.warn,
) -> list[Completion]:
    """Generate `sampling.num_samples` continuations of a prompt. Arguments and errors as in `generate_stream`."""
    parts: dict[int, list[str]] = {}
    last: dict[int, TextChunk] = {}
    options: dict[str, Any] = {"state": state, "memory": memory, "engine": engine, "notify": notify}
    for chunk in generate_stream(model, tokenizer, prompt, sampling, **options):
        parts.setdefault(chunk.sample, []).append(chunk.text)
        last[chunk.sample] = chunk
    return [Completion(**(vars(last[sample]) | {"text": "".join(parts[sample])})) for sample in sorted(last)]


def generate_stream(
    model: LiquidNetwork,
    tokenizer: TextTokenizer,
    prompt: str = "",
    sampling: SamplingConfig | None = None,
    *,
    state: TextState | LiquidState | None = None,
    memory: Mixture | None = None,
    engine: EngineName = "auto",
    notify: Callable[[str], None] = warnings.warn,
) -> Iterator[TextChunk]:
    """Continue a prompt, yielding text as it is generated.

    The chunks of a sample, joined, are its text; the last one has a finish_reason. The possible beginning of a stop
    string, and the bytes of an incomplete character, are held back. The model is in evaluation mode while the iterator
    is in use, and in its previous mode when the iterator ends or is closed.

    Args:
        model: Network, on any device.
        tokenizer: The tokenizer that the model was trained with.
        prompt: Text to continue. If empty, generation starts as a document does: after an EOS token; or after a line
            end if the training text had too few documents to learn what follows one (`TextTokenizer.choose_start`).
        sampling: How to draw, how much, and where to stop; the defaults of `SamplingConfig` if None.
        state: State before the prompt, of one sequence; the initial state if None. With a `TextState` an empty prompt
            continues that text.
        memory: N-gram memory to mix with the network's distribution, of the same tokens (see `memory.load_memory`).
        engine: torch (any model, any device), native (see `native`; faster on the CPU), int8 (native with 8-bit
            weights, which changes the text), or auto: native where it is supported, torch elsewhere.
        notify: Called with a sentence about each part of the prompt that is unknown to the tokenizer, and about each
            stop string that it cannot generate.

    Raises:
        UsageError: At the call, if the prompt holds no token, or the tokenizer is not the model's; at the first chunk,
            if the state is not one sequence of this model, or the native decoder does not support this model.
        LogitsError: While generating, if the model's output is no distribution.
    """
    sampling = sampling or SamplingConfig()
    sizes = {tokenizer.vocab_size, model.settings.input_size, model.settings.vocabulary}
    if len(sizes) > 1:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model reads {model.settings.input_size} and "
            f"generates {model.settings.vocabulary}: use the tokenizer that the model was trained with"
        )
    if memory is not None and memory.memory.vocab_size != tokenizer.vocab_size:
        raise UsageError(f"memory: counts {memory.memory.vocab_size} tokens, the tokenizer has {tokenizer.vocab_size}")
    for stop in sampling.stop:
        if foreign := tokenizer.unwritable_characters(stop):
            names = ", ".join(map(repr, foreign))
            notify(f"stop string {stop!r}: the {tokenizer.kind} tokenizer cannot generate {names}: it ends no text")
    if not isinstance(state, TextState):
        ids = encode_prompt(tokenizer, prompt, notify)
        return _stream(model, tokenizer, ids, sampling, state, memory, engine)
    state.require_model(model)
    if state.batch_size != 1:
        raise UsageError(f"state: expected one text, got {state.batch_size}: choose one with select")
    ids = [int(state.last), *(encode_prompt(tokenizer, prompt, notify) if prompt else [])]
    return _stream(model, tokenizer, ids, sampling, state.liquid, memory, engine, state.before[0])


def encode_prompt(tokenizer: TextTokenizer, prompt: str, notify: Callable[[str], None]) -> list[int]:
    """Token ids of a prompt, at least one.

    Args:
        tokenizer: Unknown characters become its unknown token, if it has one.
        prompt: Any text; the empty one gives `tokenizer.start_id`.
        notify: Called with a sentence that names the characters that became the unknown token.

    Raises:
        UsageError: If a text that is not empty has no tokens, or holds a NUL.
    """
    prompt = normalize(prompt, "prompt")
    if not prompt:
        return [tokenizer.start_id]
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UsageError(
            f"prompt: the {tokenizer.kind} tokenizer finds no token in {prompt[:40]!r}; "
            "write some words, or leave the prompt empty"
        )
    unknown = 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
    if unknown:
        strange = tokenizer.unknown_characters(prompt)
        names = f" ({listed(strange)})" if strange else ""
        notify(f"prompt: {unknown} of {len(ids)} tokens are unknown to the {tokenizer.kind} tokenizer{names}")
    if spelled := tokenizer.spelled_specials(prompt):
        notify(f"prompt: {', '.join(spelled)} are read as ordinary characters, not as special tokens")
    return ids


def _stream(
    model: LiquidNetwork,
    tokenizer: TextTokenizer,
    prompt: list[int],
    sampling: SamplingConfig,
    state: LiquidState | None,
    memory: Mixture | None,
    engine: EngineName,
    before: Sequence[int] = (),
) -> Iterator[TextChunk]:
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    if not sampling.max_tokens:
        for number in range(sampling.num_samples):
            yield TextChunk(number, "", 0, 0.0, len(prompt), seed, "length")
        return
    fresh = SampleText(tokenizer, prompt, sampling)
    samples = {i: fresh.fork() for i in range(sampling.num_samples)}
    with evaluating(model):
        source = open_engine(
            model, Request(prompt, sampling, seed, tokenizer.eos_token_id, state, memory, before), engine
        )
        start, rows = time.perf_counter(), list(samples)
        while rows:
            tokens = source.draw()
            going = list(range(len(rows)))
            for column in tokens.T.tolist():
                for row in list(going):
                    sample = samples[rows[row]]
                    text, reason = sample.push(column[row])
                    if text or reason:
                        seconds = time.perf_counter() - start
                        yield TextChunk(rows[row], text, sample.tokens, seconds, len(prompt), seed, reason)
                    if reason is not None:
                        going.remove(row)
            if len(going) < len(rows):
                rows = [rows[row] for row in going]
                source.keep(going)
