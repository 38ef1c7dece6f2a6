"""Chat completions: what Open WebUI, the `llm` command and OpenAI's client need."""

from typing import Any

import openai
import pytest
from openai import OpenAI

MESSAGES: list[Any] = [
    {"role": "system", "content": "the sea"},
    {"role": "user", "content": [{"type": "text", "text": "it "}, {"type": "text", "text": "was"}]},
]


def test_messages_are_joined_by_line_ends_and_continued(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="chars", messages=MESSAGES, max_completion_tokens=30, seed=4, logprobs=True, top_logprobs=2
    )
    text = client.completions.create(model="chars", prompt="the sea\nit was", max_tokens=30, seed=4, logprobs=2)
    choice, same = answer.choices[0], text.choices[0]
    assert choice.message.content == same.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == same.finish_reason
    assert answer.usage == text.usage
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert same.logprobs is not None
    assert [entry.logprob for entry in choice.logprobs.content] == same.logprobs.token_logprobs
    assert bytes(byte for entry in choice.logprobs.content for byte in entry.bytes or []).decode() == same.text


def test_a_stream_has_role_text_and_reason_in_events_of_their_own(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "chars", "messages": MESSAGES, "max_tokens": 30, "seed": 4}
    whole = client.chat.completions.create(**request)
    with client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **request) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", None)
    assert all(choice.delta.role is None for choice in choices[1:])
    assert choices[-1].delta.content is None
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ({"messages": "a"}, "messages"),
        ({"tools": []}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_completion_tokens": 301}, "max_completion_tokens"),
    ],
    ids=str,
)
def test_what_cannot_work_is_named(client: OpenAI, wrong: dict[str, Any], param: str) -> None:
    body = {"model": "chars", "messages": MESSAGES, **wrong}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", cast_to=dict[str, Any], body=body)
    assert caught.value.param == param
