"""POST /v1/chat/completions: for clients without support for /v1/completions. The models are no chat models.

The template "plain" joins the contents of the messages by line ends; the model continues the last one.
"""

import asyncio
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import Response

from ltc_textgen.model.text_state import TextState
from ltc_textgen.serve.answers import Form, respond, tau_report
from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.choices import Choice, chat_logprobs
from ltc_textgen.serve.models import Served
from ltc_textgen.serve.prepare import Limits, Plan, checked_max_tokens, options_of, read_prompt, seed_of
from ltc_textgen.serve.requests import MOST_LOGPROBS, Body, GenerationRequest, parse
from ltc_textgen.serve.server import Answer, Server, read_json, server_of
from ltc_textgen.serve.state_store import find_state

DEFAULT_TOKENS = 256
"""Tokens of an answer if neither max_completion_tokens nor max_tokens is given."""


class Part(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message. The template "plain" ignores roles and names."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Body):
    """Only text is written."""

    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="Most tokens of the answer.")
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="The same, if that is not given.")
    logprobs: bool = Field(False, description="Report the log-probability of each token.")
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS, description="And of this many likeliest ones.")
    response_format: ResponseFormat | None = None

    @field_validator("messages", mode="before")
    @classmethod
    def _without_null(cls, messages: Any) -> Any:
        """Clients send null for the name that a message does not have."""
        if not isinstance(messages, list):
            return messages
        return [
            {k: v for k, v in m.items() if v is not None or k == "content"} if isinstance(m, dict) else m
            for m in messages
        ]


async def chat_completions(request: Request) -> Response:
    """Handler of POST /v1/chat/completions."""
    server = server_of(request)
    if server.settings.chat_template == "none":
        raise ApiError(404, "this server has no chat template: use /v1/completions", code="no_chat_template")
    body = parse(ChatRequest, await read_json(request))
    served = server.ready_models().find(body.model)
    before = find_state(body.ltc.state, served, server.states)
    plan = await asyncio.to_thread(plan_chat, body, served, before, server.settings.limits)
    answer = await server.submit(plan)
    return await respond(request, server, plan, answer, ChatForm(plan, answer, server))


def plan_chat(body: ChatRequest, served: Served, before: TextState | None, limits: Limits) -> Plan:
    """What a chat completion asks for.

    Raises:
        ApiError: If it cannot be done.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    given = body.max_completion_tokens or body.max_tokens or min(DEFAULT_TOKENS, limits.max_tokens)
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = checked_max_tokens(given, limits, param)
    options = options_of(body, served, max_tokens, (body.top_logprobs or 0) if body.logprobs else None)
    text = "\n".join(message.text() for message in body.messages)
    prompt = read_prompt(served, text, limits, "messages", before is not None)
    plan = Plan(served, body, [prompt], options, body.n, seed_of(body), before)
    tau_report(plan)  # raises if a neuron does not exist
    return plan


class ChatForm(Form):
    """The documents of one chat completion; see `Form`."""

    def __init__(self, plan: Plan, answer: Answer, server: Server) -> None:
        kind = "chat.completion.chunk" if plan.request.stream else "chat.completion"
        super().__init__(kind, "chatcmpl", plan, answer, server)
        assert isinstance(plan.request, ChatRequest)
        self._body = plan.request

    def choice(self, choice: Choice, index: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        document = {"index": index, "message": message, "logprobs": self._logprobs(choice)}
        return {**document, "finish_reason": choice.reason, **self.extension(choice)}

    def chunks(self, choice: Choice, first: bool) -> list[dict[str, Any]]:
        """Events of a role, of text and of the finish reason, each in one of its own, as OpenAI's server sends them."""
        parts: list[dict[str, Any]] = []
        if first:
            parts.append({"delta": {"role": "assistant", "content": None}})
        if choice.text or choice.tokens:
            more = self.extension(choice) if choice.reason is None else {}
            parts.append({"delta": {"content": choice.text}, "logprobs": self._logprobs(choice), **more})
        if choice.reason is not None:
            parts.append({"delta": {}, "finish_reason": choice.reason, **self.extension(choice)})
        return [{"index": choice.index, "logprobs": None, "finish_reason": None, **part} for part in parts]

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        served = self._plan.served
        return chat_logprobs(served.spelling, served.token_bytes, choice) if self._body.logprobs else None
