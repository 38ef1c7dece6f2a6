"""From a request to the jobs of the scheduler."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import UsageError
from ltc_textgen.generation.generate import encode_prompt
from ltc_textgen.generation.sample_text import SampleText
from ltc_textgen.memory import Mixture
from ltc_textgen.model.text_state import TextState
from ltc_textgen.serve.api_error import ApiError, bad_request
from ltc_textgen.serve.engine import Clamp, Context, Options
from ltc_textgen.serve.jobs import Channel, Job
from ltc_textgen.serve.models import Served
from ltc_textgen.serve.prefix_cache import prefix_keys
from ltc_textgen.serve.requests import GenerationRequest


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_tokens: int = 4096
    max_prompt_tokens: int = 1_000_000


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Args:
        ids: Token ids of the request.
        text: What `echo` shows.
    """

    ids: list[int]
    text: str

    def places(self, tokenizer: TextTokenizer) -> list[int]:
        """Where the text of each token begins."""
        decoder, places, length = tokenizer.stream(), [], 0
        for token in self.ids:
            places.append(length)
            length += len(decoder.push(token))
        return places


@dataclass(frozen=True)
class Plan:
    """What to generate.

    Args:
        served: The model.
        request: The request.
        prompts: Its prompts.
        options: How rows draw.
        samples: Rows for each prompt.
        seed: Their seed.
        before: State before each prompt, and what identifies it; None begins a document.
        score: Report the log-probabilities of the prompts, with this many likeliest tokens.
    """

    served: Served
    request: GenerationRequest
    prompts: Sequence[Prompt]
    options: Options
    samples: int
    seed: int
    before: TextState | None = None
    score: int | None = None

    def jobs(self, channel: Channel) -> list[Job]:
        """A job for each prompt. Takes time for long prompts: not for the event loop."""
        return [self._job(number, prompt, channel) for number, prompt in enumerate(self.prompts)]

    def _job(self, number: int, prompt: Prompt, channel: Channel) -> Job:
        served, sampling = self.served, self.options.sampling
        engine = served.engine_for(self.options)
        if self.before is None:
            state, ids = served.initial_state, prompt.ids
        else:
            state, ids = self.before.liquid, [int(self.before.last), *prompt.ids]
        context = Context(state, np.array(ids, np.int64), memory=self.options.memory)
        keys: list[bytes] = []
        if self.request.ltc.cache and self.score is None:
            base = "" if self.before is None else state_name(self.before)
            keys = prefix_keys(f"{served.weights}\0{engine.name}\0{self.options.elapsed}\0{base}", context)
        return Job(
            model=served.name,
            engine=engine,
            context=context,
            options=self.options,
            seed=self.seed,
            text=SampleText(served.tokenizer, ids, sampling),
            eos_token_id=served.tokenizer.eos_token_id,
            vocabulary=served.model.settings.vocabulary,
            channel=channel,
            first=number * self.samples,
            samples=self.samples,
            new_tokens=len(prompt.ids),
            # The EOS token that stands for an empty prompt is no text that could be repeated.
            seen=[token for token in ids if token != served.tokenizer.eos_token_id],
            score=self.score,
            keep_state=self.request.ltc.return_state is not None,
            keys=keys,
        )


def state_name(state: TextState) -> str:
    """The identity of a state as a key of the prefix cache."""
    from ltc_textgen.io.hashing import digest

    return digest({**state.liquid.tensors(), "last": state.last})


def options_of(request: GenerationRequest, served: Served, max_tokens: int, logprobs: int | None) -> Options:
    """How the rows of a request draw.

    Raises:
        ApiError: If a token or neuron does not exist.
    """
    vocabulary = served.model.settings.vocabulary
    bias = {int(token): value for token, value in request.logit_bias.items()}
    for token in bias:
        if token >= vocabulary:
            raise bad_request(f"logit_bias: there is no token {token}, only 0 to {vocabulary - 1}", "logit_bias")
    if sum(value <= -100 for value in bias.values()) + request.ltc.ignore_separator >= vocabulary:
        raise bad_request("logit_bias forbids every token", "logit_bias")
    clamps = tuple(
        Clamp(served.neuron(clamp.neuron, f"ltc.clamp.{i}.neuron"), clamp.value, clamp.tau_factor or 1.0, clamp.start)
        for i, clamp in enumerate(request.ltc.clamp)
    )
    sampling = SamplingConfig(
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        stop=request.stops(),
        ignore_eos=request.ltc.ignore_separator,
    )
    return Options(
        sampling=sampling,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=tuple(bias.items()),
        logprobs=logprobs,
        elapsed=request.ltc.elapsed,
        clamps=clamps,
        memory=memory_for(request, served),
        observe=request.ltc.tau is not None,
    )


def memory_for(request: GenerationRequest, served: Served) -> Mixture | None:
    """The n-gram memory with the `share` that a request asks for; None for the network alone.

    Raises:
        ApiError: If the run has none.
    """
    share = request.ltc.memory
    if share and served.memory is None:
        raise bad_request(f"ltc.memory: {served.name} was trained without an n-gram memory", "ltc.memory")
    return None if share == 0 or served.memory is None else served.memory.with_share(1.0 if share is None else share)


def seed_of(request: GenerationRequest) -> int:
    """The seed of a request; drawn if it has none."""
    return secrets.randbits(63) if request.seed is None else request.seed


def read_prompt(served: Served, prompt: str | list[int], limits: Limits, param: str, state: bool) -> Prompt:
    """A prompt as token ids.

    Args:
        served: The model.
        prompt: A text, or token ids.
        limits: Its longest length.
        param: What to name in an error.
        state: Whether there is a state before it: an empty text then adds nothing.

    Raises:
        ApiError: If it has no token or too many, or an id is not in the vocabulary.
    """
    if isinstance(prompt, list):
        if max(prompt) >= served.tokenizer.vocab_size:
            message = f"{param}: there is no token {max(prompt)}, only 0 to {served.tokenizer.vocab_size - 1}"
            raise bad_request(message, param)
        ids, text = prompt, served.tokenizer.decode(prompt)
    else:
        try:
            ids = [] if state and not prompt else encode_prompt(served.tokenizer, prompt, lambda _: None)
        except UsageError as error:
            raise bad_request(str(error), param) from None
        text = prompt
    if len(ids) > limits.max_prompt_tokens:
        raise bad_request(f"{param}: {len(ids):,} tokens; the limit is {limits.max_prompt_tokens:,}", param)
    return Prompt(ids, text)


def checked_max_tokens(max_tokens: int, limits: Limits, param: str) -> int:
    """The number of tokens to draw, if the server allows it.

    Raises:
        ApiError: If it does not.
    """
    if max_tokens > limits.max_tokens:
        raise ApiError(400, f"{param}: {max_tokens:,}; the limit of this server is {limits.max_tokens:,}", param)
    return max_tokens
