"""The bodies of requests: OpenAI's fields, and those of this server under "ltc". Unknown fields are errors.

Every accepted field has an effect, except two that are documented as ignored.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ltc_textgen.config import SamplingConfig
from ltc_textgen.io.checked import require_shallow
from ltc_textgen.serve.api_error import ApiError, bad_request

MOST_PROMPTS = 64
MOST_CHOICES = 64
MOST_BIASES = 300
MOST_STOPS = 16
MOST_LOGPROBS = 20


class Body(BaseModel):
    """A JSON object of a request: strict types, no unknown keys, no numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Parsed = TypeVar("Parsed", bound=Body)
Stop = Annotated[str, Field(min_length=1, max_length=256)]
NeuronName = Annotated[str, Field(pattern=r"^L(0|[1-9]\d{0,3})N(0|[1-9]\d{0,5})$")]


class StreamOptions(Body):
    """What a stream reports in addition to text."""

    include_usage: bool = Field(False, description="Send the usage in a last chunk without choices.")
    continuous_usage_stats: bool = Field(False, description="Send the usage so far in every chunk.")


class TauOptions(Body):
    """Which time constants a stream reports."""

    neurons: list[NeuronName] = Field(default_factory=list, max_length=8, description="Reported for every token.")
    frames_hz: float = Field(0.0, ge=0, le=10, description="Frames of all neurons per second.")


class ClampOptions(Body):
    """An intervention on one neuron."""

    neuron: NeuronName
    value: float | None = Field(None, ge=-1e6, le=1e6, description="Hold the state of the neuron here.")
    tau_factor: float | None = Field(None, ge=1e-6, le=1e6, description="Multiply the time constant of the neuron.")
    start: int = Field(0, ge=0, alias="from", description="Tokens that are drawn before it holds.")

    @model_validator(mode="after")
    def _acts(self) -> "ClampOptions":
        if (self.value is None) == (self.tau_factor is None):
            raise ValueError("give either value or tau_factor")
        return self


class LtcOptions(Body):
    """What a recurrent model can do beyond OpenAI's fields."""

    state: str | None = Field(None, description='State before the prompt: an id ("st_...") or a file in base64.')
    return_state: Literal["id", "base64"] | None = Field(None, description="Return the state after each text.")
    cache: bool = Field(True, description="Use the cached states of earlier prompts with the same beginning.")
    elapsed: float = Field(1.0, ge=0, le=1e6, description="Time from each token to the next, in token time.")
    memory: float | None = Field(None, ge=0, le=1, description="Fraction of the n-gram memory; 1 if there is one.")
    tau: TauOptions | None = None
    clamp: list[ClampOptions] = Field(default_factory=list, max_length=32)
    ignore_separator: bool = Field(False, description="Never draw the token that ends a document.")


def _described(name: str) -> str:
    return str(SamplingConfig.model_fields[name].description)


class GenerationRequest(Body):
    """What completions and chat completions have in common."""

    model: str | None = Field(None, max_length=200, description="Name of a model; the first one if not given.")
    temperature: float = Field(1.0, ge=0, le=100, description=_described("temperature"))
    top_p: float = Field(1.0, gt=0, le=1, description=_described("top_p"))
    top_k: int = Field(0, ge=0, lt=2**31, description=_described("top_k"))
    min_p: float = Field(0.0, ge=0, le=1, description=_described("min_p"))
    repetition_penalty: float = Field(1.0, ge=0.01, le=100, description=_described("repetition_penalty"))
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="Subtracted for tokens that were drawn before.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="Subtracted each time that a token was drawn.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MOST_BIASES, description="Added to the logits of tokens; -100 forbids one."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description=_described("seed"))
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] = Field(
        default_factory=list, description=_described("stop")
    )
    n: int = Field(1, ge=1, le=MOST_CHOICES, description="Texts to write from each prompt.")
    stream: bool = Field(False, description="Send the text as it is written.")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Ignored.")
    metadata: dict[str, Any] | None = Field(None, description="Ignored.")
    ltc: LtcOptions = Field(default_factory=LtcOptions)

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, bias: dict[str, float]) -> dict[str, float]:
        for key in bias:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"expected token ids as keys, got {key[:40]!r}")
        return bias

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is allowed only with stream: true", "stream_options")
        return self

    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        "", description="Texts or token ids to continue; an empty text begins as a document does."
    )
    max_tokens: int = Field(16, ge=0, lt=2**31, description=_described("max_tokens"))
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Write so many texts, return the likeliest n.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS, description="Report this many likeliest tokens.")
    echo: bool = Field(False, description="Begin the text with the prompt.")
    suffix: None = Field(None, description="Not supported.")

    @field_validator("prompt", mode="plain")
    @classmethod
    def _prompt(cls, prompt: Any) -> Any:
        """Pydantic would make an error of each of a million items, for each type of the union."""
        if isinstance(prompt, str):
            return prompt
        if not isinstance(prompt, list) or not prompt:
            raise ApiError(400, "prompt: expected a text, token ids, or a list of one of them, not empty", "prompt")
        if type(prompt[0]) is int:
            check_tokens(prompt, "prompt")
            return prompt
        if len(prompt) > MOST_PROMPTS:
            raise ApiError(400, f"prompt: at most {MOST_PROMPTS} prompts, got {len(prompt)}", "prompt")
        for number, item in enumerate(prompt):
            if type(item) is not type(prompt[0]) or not isinstance(item, str | list):
                message = f"prompt.{number}: expected a text or token ids, and all prompts alike"
                raise ApiError(400, message, f"prompt.{number}")
            if isinstance(item, list):
                check_tokens(item, f"prompt.{number}")
        return prompt

    @model_validator(mode="after")
    def _combinations(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < self.n:
            raise ApiError(400, f"best_of must be at least n = {self.n}", "best_of")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise ApiError(400, "best_of cannot be streamed: the likeliest text is known at the end", "best_of")
        if self.max_tokens == 0 and not self.echo and self.ltc.return_state is None:
            raise ApiError(400, "max_tokens 0 needs echo or ltc.return_state", "max_tokens")
        return self

    def prompts(self) -> dict[str, str | list[int]]:
        """The prompts, texts or token ids, by the name that an error gives them."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return {"prompt": prompt}
        return {f"prompt.{number}": item for number, item in enumerate(prompt)}


def check_tokens(ids: list[Any], param: str) -> None:
    """Raises ApiError unless a list holds token ids, at least one."""
    if not ids:
        raise ApiError(400, f"{param}: a list of token ids must not be empty", param)
    for number, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < 2**31:
            raise ApiError(400, f"{param}.{number}: expected a token id, >= 0", f"{param}.{number}")


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        ApiError: If it is no JSON object, has a key twice, or is nested too deep.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def no_number(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    try:
        document = json.loads(content, object_pairs_hook=unique, parse_constant=no_number)
        require_shallow(document)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise bad_request(f"the body must be a JSON object, got {type(document).__name__}")
    return document


def parse(kind: type[Parsed], document: dict[str, Any]) -> Parsed:
    """A request from its JSON object; null means that a field is not given.

    Raises:
        ApiError: 400; `param` names the first field that is wrong.
    """
    given = {name: value for name, value in document.items() if value is not None or name not in kind.model_fields}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        # Of a union every member has its errors; the one that came furthest was meant.
        same = [one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]]
        first = max(same, key=lambda one: len(one["loc"]))
        path = [str(part) for part in first["loc"] if _is_key(part)]
        if first["type"] == "extra_forbidden":
            raise bad_request(f"unknown field {path[-1][:80]!r}", ".".join(path)[:200]) from None
        message = first["msg"].removeprefix("Value error, ")
        param = ".".join(path)[:200] or None
        raise bad_request(f"{param}: {message}" if param else message, param) from None


def _is_key(part: int | str) -> bool:
    """False for the names that pydantic gives to the members of a union, such as list[str]."""
    return isinstance(part, int) or (not any(mark in part for mark in ("[", "-")) and part not in {"str", "int"})
