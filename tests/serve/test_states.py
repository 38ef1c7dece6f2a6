"""States by id and by value."""

import base64
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Serving

from ltc_textgen.model.text_state import TextState, mix
from ltc_textgen.runs import Run
from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.metrics import Metrics
from ltc_textgen.serve.models import Served
from ltc_textgen.serve.state_store import StateStore
from ltc_textgen.serve.torch_engine import TorchEngine

Runs = dict[str, Run]
BINARY = "application/octet-stream"


def complete(server: Serving, prompt: str, tokens: int, **ltc: Any) -> dict[str, Any]:
    document = {"model": "chars", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ltc": ltc}
    status, answer, _ = server.post("/v1/completions", document)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("how", ["id", "base64"])
def test_a_text_continues_from_its_state(server: Serving, how: str) -> None:
    whole = complete(server, "it was a day, ", 40)["choices"][0]["text"]
    first = complete(server, "it was a day, ", 15, return_state=how)
    state = first["choices"][0]["ltc"]["state"]
    rest = complete(server, "", 25, state=state)
    assert first["choices"][0]["text"] + rest["choices"][0]["text"] == whole
    assert rest["usage"]["prompt_tokens"] == 0


def test_a_state_holds_the_tokens_up_to_a_stop(server: Serving, loaded: Runs) -> None:
    document = {
        "model": "chars",
        "prompt": "it was",
        "max_tokens": 100,
        "seed": 3,
        "stop": ["e"],
        "logprobs": 0,
        "ltc": {"return_state": "base64"},
    }
    choice = server.post("/v1/completions", document)[1]["choices"][0]
    run = loaded["chars"]
    state = TextState.from_bytes(base64.b64decode(choice["ltc"]["state"]), run.network)
    text = "it was" + "".join(choice["logprobs"]["tokens"])
    assert state.tokens == (len(text),)
    expected = run.network.read(text)
    assert state.last.equal(expected.last)
    for ours, theirs in zip(state.liquid.neurons, expected.liquid.neurons, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_state_is_read_on_and_forked(server: Serving) -> None:
    state = complete(server, "it was", 0, return_state="id")["choices"][0]["ltc"]["state"]
    _, longer, _ = server.post(f"/v1/ltc/states/{state}/read", {"text": " a day"})
    assert longer["tokens"] == 12
    assert longer["id"] != state
    document = {"model": "chars", "prompt": "", "max_tokens": 20, "seed": 9, "n": 4, "ltc": {"state": longer["id"]}}
    fork = server.post("/v1/completions", document)[1]
    whole = server.post("/v1/completions", {**document, "prompt": "it was a day", "ltc": {}})[1]
    assert [choice["text"] for choice in fork["choices"]] == [choice["text"] for choice in whole["choices"]]


def test_states_go_through_files(server: Serving, loaded: Runs, tmp_path: Path) -> None:
    model = loaded["chars"].network
    a, b = model.read("it was"), model.read("the sea")
    ids = []
    for state in (a, b):
        code, described, _ = server.send("POST", "/v1/ltc/states", state.to_bytes(), Content_Type=BINARY)
        assert (code, described["tokens"], described["model"]) == (201, state.tokens[0], "chars")
        ids.append(described["id"])
    again = server.send("POST", "/v1/ltc/states", a.to_bytes(), Content_Type=BINARY)[1]
    assert again["id"] == ids[0]
    assert server.get(f"/v1/ltc/states/{ids[0]}", Accept="application/json")[1]["id"] == ids[0]
    client = server.client()
    content = client.get(f"/ltc/states/{ids[0]}", cast_to=bytes, options={"headers": {"Accept": BINARY}})
    (tmp_path / "a.state").write_bytes(content)
    back = TextState.load(tmp_path / "a.state", model)
    assert all(x.equal(y) for x, y in zip(back.liquid.neurons, a.liquid.neurons, strict=True))
    _, between, _ = server.post("/v1/ltc/states/mix", {"a": ids[0], "b": ids[1], "weight": 0.25})
    expected = mix(a, b, 0.25).to_bytes()
    assert server.send("POST", "/v1/ltc/states", expected, Content_Type=BINARY)[1]["id"] == between["id"]
    assert server.send("DELETE", f"/v1/ltc/states/{between['id']}", None)[0] == 200
    assert server.send("DELETE", f"/v1/ltc/states/{between['id']}", None)[0] == 404


def test_foreign_and_damaged_states_are_rejected(server: Serving, loaded: Runs) -> None:
    good = loaded["chars"].network.read("it was").to_bytes()
    flipped = bytearray(good)
    flipped[-3] ^= 1
    other = loaded["bytes"].network.read("it was").to_bytes()
    bad = {
        "state_damaged": [b"", good[:-7], bytes(flipped), b"\xff" * 8 + good[8:], pickle.dumps({"a": 1})],
        "state_mismatch": [other],
    }
    for code, contents in bad.items():
        for content in contents:
            status, answer, _ = server.send("POST", "/v1/ltc/states?model=chars", content, Content_Type=BINARY)
            assert (status, answer["error"]["code"]) == (400, code)
            document = {"model": "chars", "prompt": "", "ltc": {"state": base64.b64encode(content).decode()}}
            if content:
                status, answer, _ = server.post("/v1/completions", document)
                assert (status, answer["error"]["code"]) == (400, code)
    assert server.send("POST", "/v1/ltc/states", b"a" * (2 << 20), Content_Type=BINARY)[0] == 413
    for text in ("st_" + "0" * 64, "st_../../etc/passwd"):
        status, answer, _ = server.post("/v1/completions", {"model": "chars", "prompt": "", "ltc": {"state": text}})
        assert (status, answer["error"]["code"]) == (404, "state_not_found")
    assert server.post("/v1/completions", {"prompt": "", "ltc": {"state": "not base64!"}})[0] == 400


def test_the_store_drops_the_oldest_and_the_unused(loaded: Runs) -> None:
    run, now = loaded["chars"], [0.0]
    served = Served("chars", run.network, run.tokenizer, [TorchEngine(run.network)])
    states = [run.network.read(text) for text in ("a", "b", "c")]
    probe = StateStore(1 << 20, 10, Metrics(), lambda: now[0])
    size = probe.put(states[0], served).size
    store = StateStore(2 * size, 10, Metrics(), lambda: now[0])
    names = [store.put(state, served).describe()["id"] for state in states[:2]]
    store.get(names[0])
    names.append(store.put(states[2], served).describe()["id"])
    with pytest.raises(ApiError):
        store.get(names[1])
    now[0] = 9.0
    store.get(names[0])
    now[0] = 11.0
    with pytest.raises(ApiError):
        store.get(names[2])
    assert store.get(names[0]).state.tokens == (1,)
    with pytest.raises(ApiError) as caught:
        StateStore(size - 1, 10, Metrics()).put(states[0], served)
    assert caught.value.code == "state_memory_full"
