"""Completions over HTTP, with OpenAI's own client."""

import math
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from serving import Serving

from ltc_textgen.config import SamplingConfig
from ltc_textgen.generation import generate
from ltc_textgen.memory import Mixture
from ltc_textgen.runs import Run, memory_of

Runs = dict[str, Run]


def written(run: Run, prompt: str, memory: Mixture | None = None, **sampling: Any) -> list[str]:
    """What `ltc generate` writes."""
    quiet: dict[str, Any] = {"notify": lambda _: None, "memory": memory}
    return [c.text for c in generate(run.network, run.tokenizer, prompt, SamplingConfig(**sampling), **quiet)]


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 5, "min_p": 0.05},
    {"temperature": 1.0, "repetition_penalty": 1.4},
    {"temperature": 1.0, "stop": ["e", "zz"]},
]


@pytest.mark.parametrize("name", ["chars", "bytes"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_seed_gives_the_text_of_ltc_generate(
    client: OpenAI, loaded: Runs, name: str, options: dict[str, Any]
) -> None:
    own = {key: options[key] for key in options.keys() & {"top_k", "min_p", "repetition_penalty"}}
    known = {key: value for key, value in options.items() if key not in own}
    answer = client.completions.create(
        model=name, prompt="it was a day", max_tokens=40, seed=7, extra_body=own, **known
    )
    assert [choice.text for choice in answer.choices] == written(
        loaded[name], "it was a day", max_tokens=40, seed=7, **options
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 12


def test_a_memory_is_mixed_in_as_ltc_generate_does(server: Serving, client: OpenAI, loaded: Runs) -> None:
    request: dict[str, Any] = {"model": "mixed", "prompt": "the sea", "max_tokens": 60, "seed": 3}
    run = loaded["mixed"]
    mixture = memory_of(run)
    assert mixture is not None
    texts = {}
    for share in (None, 0.5, 0):
        answer = client.completions.create(extra_body={"ltc": {} if share is None else {"memory": share}}, **request)
        texts[share] = answer.choices[0].text
        memory = None if share == 0 else mixture.with_share(share or 1.0)
        expected = written(run, "the sea", max_tokens=60, seed=3, temperature=1.0, memory=memory)
        assert texts[share] == expected[0]
    assert len(set(texts.values())) == 3
    status, answer, _ = server.post("/v1/completions", {**request, "model": "chars", "ltc": {"memory": 0.5}})
    assert (status, answer["error"]["param"]) == (400, "ltc.memory")


def test_samples_are_those_of_ltc_generate(client: OpenAI, loaded: Runs) -> None:
    answer = client.completions.create(model="chars", prompt="", max_tokens=20, seed=3, n=4)
    assert [choice.text for choice in answer.choices] == written(
        loaded["chars"], "", max_tokens=20, seed=3, num_samples=4, temperature=1.0
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def streamed(client: OpenAI, **request: Any) -> dict[int, dict[str, Any]]:
    """A stream, put together."""
    choices: dict[int, dict[str, Any]] = {}
    ids, usages = set(), []
    with client.completions.create(stream=True, stream_options={"include_usage": True}, **request) as stream:
        for chunk in stream:
            ids.add(chunk.id)
            usages.append(chunk.usage)
            for part in chunk.choices:
                whole = choices.setdefault(part.index, {"text": "", "logprobs": [], "reasons": []})
                whole["text"] += part.text
                whole["reasons"] += [part.finish_reason] if part.finish_reason else []
                if part.logprobs:
                    lists = (part.logprobs.tokens, part.logprobs.token_logprobs, part.logprobs.text_offset)
                    whole["logprobs"] += zip(*lists, part.logprobs.top_logprobs, strict=True)
    assert len(ids) == 1
    assert all(usage is None for usage in usages[:-1])
    return {**choices, -1: {"usage": usages[-1]}}


@pytest.mark.parametrize("name", ["chars", "bytes"])
@pytest.mark.parametrize("more", [{}, {"echo": True}, {"n": 3}, {"stop": ["a", "bcd", "e, f"]}], ids=str)
def test_a_stream_is_the_whole_answer_in_parts(client: OpenAI, name: str, more: dict[str, Any]) -> None:
    request = {"model": name, "prompt": ["it was", "née 🌊"], "max_tokens": 60, "seed": 11, "logprobs": 3, **more}
    whole, parts = client.completions.create(**request), streamed(client, **request)
    for choice in whole.choices:
        part = parts[choice.index]
        assert part["text"] == choice.text
        assert part["reasons"] == [choice.finish_reason]
        assert choice.logprobs is not None
        lists = (choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.text_offset)
        assert part["logprobs"] == list(zip(*lists, choice.logprobs.top_logprobs, strict=True))
    assert parts[-1]["usage"] == whole.usage


def test_echo_scores_the_prompt_as_the_model_does(client: OpenAI, loaded: Runs) -> None:
    run = loaded["chars"]
    text = "a day at sea, then home.\n" * 50  # more than two slices
    ids = run.tokenizer.encode(text)
    answer = client.completions.create(
        model="chars", prompt=[ids], max_tokens=1, temperature=0, echo=True, logprobs=1, seed=1234
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert len(found.token_logprobs) == len(ids) + 1
    assert found.token_logprobs[0] is None
    with torch.no_grad():
        hidden, _ = run.network.advance(torch.tensor([ids]))
        logprobs = run.network.lm_head.logits(hidden)[0].log_softmax(-1)
    expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found.token_logprobs[1:-1]), expected, atol=1e-4, rtol=0)
    greedy = [max(top.values()) for top in found.top_logprobs[1:] if top]
    torch.testing.assert_close(torch.tensor(greedy), logprobs.amax(1), atol=1e-4, rtol=0)
    assert answer.choices[0].text.startswith(text)
    assert "".join(found.tokens or []) == answer.choices[0].text
    assert found.text_offset == list(range(len(ids) + 1))


def test_a_prompt_gives_the_same_in_a_list_as_token_ids_and_alone(client: OpenAI, loaded: Runs) -> None:
    prompts = ["it was", "", "no sea " * 200]
    request: dict[str, Any] = {"model": "bytes", "max_tokens": 25, "seed": 5}
    alone = [client.completions.create(prompt=prompt, **request).choices[0].text for prompt in prompts]
    together = client.completions.create(prompt=prompts, **request)
    assert [choice.text for choice in together.choices] == alone
    encode = loaded["bytes"].tokenizer.encode
    ids = [encode(prompts[0]), encode(prompts[2])]
    as_ids = client.completions.create(prompt=ids, **request)
    assert [choice.text for choice in as_ids.choices] == [alone[0], alone[2]]
    assert client.completions.create(prompt=ids[0], **request).choices[0].text == alone[0]


def test_a_cached_prompt_gives_the_same_bits(server: Serving) -> None:
    document = {"model": "chars", "prompt": "the sea was calm, " * 100, "max_tokens": 20, "seed": 1, "logprobs": 5}
    cold = server.post("/v1/completions", {**document, "ltc": {"cache": False}})[1]
    answers = [server.post("/v1/completions", document)[1] for _ in range(2)]
    assert [answer["choices"] for answer in answers] == [cold["choices"]] * 2
    assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 1536
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_biases_and_penalties_act(client: OpenAI, loaded: Runs) -> None:
    encode = loaded["chars"].tokenizer.encode
    request: dict[str, Any] = {"model": "chars", "prompt": "it", "max_tokens": 60, "seed": 2}
    plain = client.completions.create(**request).choices[0].text
    banned = {str(token): -100 for token in encode("aeiou ")}
    assert set("aeiou ") & set(plain)
    assert not set("aeiou ") & set(client.completions.create(**request, logit_bias=banned).choices[0].text)
    forced = client.completions.create(**request, logit_bias={str(encode("x")[0]): 100})
    assert forced.choices[0].text == "x" * 60
    for penalty in ("presence_penalty", "frequency_penalty"):
        fewer = client.completions.create(**request, temperature=0, **{penalty: 2.0}).choices[0].text
        assert len(set(fewer)) > len(set(client.completions.create(**request, temperature=0).choices[0].text))


def test_the_likeliest_of_many_is_returned(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "chars", "prompt": "it", "max_tokens": 10, "seed": 2, "logprobs": 0}
    every = client.completions.create(n=6, **request).choices
    best = client.completions.create(n=2, best_of=6, **request)

    def mean(choice: Any) -> float:
        return math.fsum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    ranked = sorted(every, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage is not None
    assert best.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in every if choice.logprobs)


def test_an_absent_seed_is_drawn_and_returned(server: Serving) -> None:
    request = {"model": "chars", "prompt": "it", "max_tokens": 30}
    answers = [server.post("/v1/completions", request)[1] for _ in range(2)]
    assert answers[0]["choices"] != answers[1]["choices"]
    again = server.post("/v1/completions", {**request, "seed": answers[0]["ltc"]["seed"]})[1]
    assert again["choices"] == answers[0]["choices"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 301}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 10**6}, "n"),
    ({"n": 2, "best_of": 1}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"seed": -1}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ["a", ""]}, "stop.1"),
    ({"suffix": "x"}, "suffix"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt.0"),
    ({"prompt": ["a", 1]}, "prompt.1"),
    ({"prompt": [1, "a"]}, "prompt.1"),
    ({"prompt": [-1]}, "prompt.0"),
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"0": 101}}, "logit_bias.0"),
    ({"logit_bias": {str(i): -100 for i in range(300)}}, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"tools": []}, "tools"),
    ({"ltc": {"stat": 1}}, "ltc.stat"),
]


@pytest.mark.parametrize(("wrong", "param"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_named(client: OpenAI, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", cast_to=dict[str, Any], body={"model": "chars", "prompt": "a", **wrong})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("name", ["none", "../../etc/passwd", "%2e%2e", "\0", "x" * 150])
def test_other_models_are_not_found(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model=name, prompt="a")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"[" * 99_000, 400),
        (b'{"prompt": "a", "temperature": NaN}', 400),
        (b'{"prompt": "a", "temperature": 1e999}', 400),
        (b'{"prompt": "a", "prompt": "b"}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "' + b"a" * (17 << 20) + b'"}', 413),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bodies_that_are_no_requests(server: Serving, content: bytes, status: int) -> None:
    code, document, headers = server.post("/v1/completions", content)
    assert code == status
    assert document["error"]["type"] == "invalid_request_error"
    assert headers["x-request-id"]


def test_only_json_is_taken(server: Serving) -> None:
    assert server.post("/v1/completions", {"prompt": "a"}, Content_Type="text/plain")[0] == 415


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chars", "bytes", "mixed"]
    assert client.models.retrieve("bytes").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_the_tokenizer_can_be_asked(server: Serving, loaded: Runs) -> None:
    text = "née\n🌊"
    _, answer, _ = server.post("/tokenize", {"model": "bytes", "prompt": text, "add_special_tokens": False})
    assert answer["tokens"] == list(text.encode())
    _, back, _ = server.post("/v1/detokenize", {"model": "bytes", "tokens": answer["tokens"]})
    assert back["prompt"] == text
    _, info, _ = server.get("/tokenizer_info")
    assert info["eos_token"] == loaded["chars"].tokenizer.eos_token
    assert server.post("/detokenize", {"tokens": [10**6]})[0] == 400


def test_health_and_readiness(server: Serving) -> None:
    assert server.get("/health")[:2] == (200, {"status": "ok"})
    assert server.get("/ready")[:2] == (200, {"status": "ready"})
