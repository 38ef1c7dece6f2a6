"""What a server does under load, to clients that go or do not read, and at its end."""

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from outcomes import Outcome
from serving import Serving

from ltc_textgen.serve.streaming import EventStream, StalledError

KEY = "a-key-for-tests"
LONG = {"model": "chars", "prompt": "it was", "max_tokens": 500_000, "ltc": {"ignore_separator": True}}
SMALL = ("--slots", "2", "--queue", "2", "--max-tokens", "1000000", "--drain-timeout", "500ms", "--engine", "torch")


@pytest.fixture(scope="module")
def limited(runs: dict[str, Path]) -> Iterator[Serving]:
    serving = Serving(runs, *SMALL, "--allow-origin", "https://app.example", "--access-log", LTC_API_KEY=KEY)
    yield serving
    code, errors = serving.stop()
    assert code == 0
    assert KEY not in errors
    assert "GET /metrics 200" in errors
    assert not any(line.startswith("forged") for line in errors.splitlines())


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds; a test that waits too long fails by its timeout."""
    while not holds():
        time.sleep(0.01)


@contextlib.contextmanager
def asking(server: Serving, document: dict[str, Any], key: str = KEY) -> Iterator[http.client.HTTPConnection]:
    """A request that was sent and not answered yet; its connection is closed at the end."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/completions", json.dumps(document), headers)
    try:
        yield connection
    finally:
        connection.close()


def cancelled(server: Serving, phase: str) -> float:
    return server.metric(f'ltc_serve_cancelled_total{{phase="{phase}"}}')


def test_a_full_queue_is_said_and_those_in_it_are_served(limited: Serving) -> None:
    client = limited.client(KEY)
    short = {**LONG, "max_tokens": 5}
    with contextlib.ExitStack() as stack:
        for number in range(4):
            stack.enter_context(asking(limited, {**LONG, "stream": number % 2 == 0}))
        eventually(lambda: limited.metric("ltc_serve_requests_waiting") == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            client.post("/completions", cast_to=dict[str, Any], body=short)
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"]
        before = cancelled(limited, "queue"), cancelled(limited, "decode")
    # Two of the four were streams; plain answers and those in the queue are cancelled as well.
    eventually(lambda: cancelled(limited, "queue") + cancelled(limited, "decode") == sum(before) + 4)
    answer = client.post("/completions", cast_to=dict[str, Any], body=short)
    assert answer["usage"]["completion_tokens"] == 5
    with pytest.raises(openai.BadRequestError) as too_many:
        client.post("/completions", cast_to=dict[str, Any], body={**short, "n": 5})
    assert too_many.value.param == "n"


def test_a_prompt_of_a_client_that_has_gone_is_read_no_further(limited: Serving) -> None:
    before = cancelled(limited, "prompt")
    with asking(limited, {**LONG, "prompt": "abcdefgh" * 60_000}):
        eventually(lambda: limited.metric("ltc_serve_requests_running") == 1)
    eventually(lambda: cancelled(limited, "prompt") == before + 1)
    eventually(lambda: limited.metric("ltc_serve_requests_running") == 0)


def test_the_key_is_asked_for(limited: Serving) -> None:
    for key in ("", "wrong", KEY + "x", KEY[:-1], "ä"):
        status, answer, _ = limited.post("/v1/completions", {"prompt": "a"}, X_Api_Key=key.encode().decode("latin-1"))
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
    with pytest.raises(openai.AuthenticationError):
        limited.client("wrong").models.list()
    assert limited.client(KEY).models.list().data
    assert limited.get("/v1/models", X_Api_Key=KEY)[0] == 200
    for path in ("/health", "/ready", "/metrics", "/"):
        assert limited.get(path)[0] == 200


def test_other_hosts_and_origins_are_turned_away(limited: Serving) -> None:
    headers = {"X_Api_Key": KEY}
    assert limited.get("/v1/models", Host="evil.example", **headers)[0] == 403
    assert limited.get("/health", Host="evil.example")[0] == 403
    status, _, found = limited.get("/v1/models", Origin="https://evil.example", **headers)
    assert status == 403
    assert "access-control-allow-origin" not in found
    status, _, found = limited.get("/v1/models", Origin="https://app.example", **headers)
    assert (status, found["access-control-allow-origin"]) == (200, "https://app.example")
    assert limited.get("/v1/models", Origin=limited.url, **headers)[0] == 200
    asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert limited.send("OPTIONS", "/v1/completions", None, **asks)[0] == 204


def test_requests_have_ids(limited: Serving) -> None:
    assert limited.get("/health", X_Request_Id="my-id.7")[2]["x-request-id"] == "my-id.7"
    assert limited.get("/health", X_Request_Id="forged\tid")[2]["x-request-id"].startswith("req_")
    assert limited.get("/nothing", X_Api_Key=KEY)[1]["error"]["code"] == "not_found"
    limited.get("/nothing%0d%0aforged%20line%1b[31m", X_Api_Key=KEY)
    assert limited.send("PUT", "/v1/completions", b"", X_Api_Key=KEY)[0] == 405


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_streams_end_with_a_reason_when_the_server_does(runs: dict[str, Path], signals: int) -> None:
    serving = Serving(runs, *SMALL[:-3], "1h" if signals == 2 else "500ms", "--engine", "torch")
    with asking(serving, {**LONG, "stream": True}) as connection:
        answer = connection.getresponse()
        first = answer.readline()
        assert first.startswith(b"data: ")
        serving.process.send_signal(signal.SIGTERM)
        eventually(lambda: serving.get("/ready")[0] == 503)
        status, rejected, headers = serving.post("/v1/completions", {"prompt": "a"})
        assert (status, rejected["error"]["code"]) == (503, "draining")
        assert headers["retry-after"]
        if signals == 2:
            serving.process.send_signal(signal.SIGTERM)
        events = [line.strip().removeprefix(b"data: ") for line in answer.read().split(b"\n\n") if line]
    assert events[-1] == b"[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "abort"
    assert serving.process.wait(30) == 0


@pytest.mark.slow
def test_a_server_that_still_loads_says_so_and_can_be_ended(runs: dict[str, Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ltc_textgen", "serve", str(runs["chars"]), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answered() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return json.loads(error.read()) == {"status": "loading"}
        except OSError:
            return False

    eventually(answered)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_reader_that_takes_nothing_is_dropped() -> None:
    dropped, closed = [], []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: 1\n\n"
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(1000)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(1000)
        return {}

    async def respond() -> None:
        response = EventStream(events(), 0.01, lambda: dropped.append(True))
        with pytest.raises(StalledError):
            await response({"type": "http"}, receive, send)

    asyncio.run(respond())
    assert dropped == closed == [True]


def test_a_public_address_needs_a_key(
    ltc: Callable[..., Outcome], runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LTC_API_KEY", raising=False)
    assert ltc("serve", runs["chars"], "--host", "0.0.0.0").code == 2
    (tmp_path / "key").write_text("\n")
    assert ltc("serve", runs["chars"], "--api-key-file", tmp_path / "key").code == 2
    assert ltc("serve", runs["chars"], "--api-key-file", tmp_path / "none").code == 2
    assert ltc("serve", runs["chars"], runs["chars"]).code == 2
    assert ltc("serve", runs["chars"], "--max-body", "many").code == 2
    assert ltc("serve", tmp_path / "none", "--port", "0").code == 4


def test_a_taken_address_is_named(ltc: Callable[..., Outcome], runs: dict[str, Path], server: Serving) -> None:
    taken = server.url.rsplit(":", 1)[1]
    outcome = ltc("serve", runs["chars"], "--port", taken)
    assert outcome.code == 1
    assert taken in outcome.error
