"""States over HTTP: upload, download, read on, mix, delete; and what completions return of them."""

import asyncio
import base64
from typing import Any, Literal

import torch
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ltc_textgen.config import SamplingConfig
from ltc_textgen.model.text_state import TextState, mix
from ltc_textgen.serve.api_error import bad_request
from ltc_textgen.serve.choices import Choice
from ltc_textgen.serve.engine import Options
from ltc_textgen.serve.jobs import Job
from ltc_textgen.serve.models import Served
from ltc_textgen.serve.prepare import Plan, read_prompt
from ltc_textgen.serve.requests import Body, GenerationRequest, LtcOptions, check_tokens, parse
from ltc_textgen.serve.server import Server, read_body, read_json, server_of, unless_gone
from ltc_textgen.serve.state_store import model_of, read_state

BINARY = "application/octet-stream"


class ReadRequest(Body):
    """Body of POST /v1/ltc/states/{id}/read."""

    text: str | None = Field(None, description="Text to read.")
    tokens: list[Any] | None = Field(None, description="Token ids to read, in place of a text.")
    elapsed: float = Field(1.0, ge=0, le=1e6, description="Time from each token to the next.")


class MixRequest(Body):
    """Body of POST /v1/ltc/states/mix."""

    a: str
    b: str
    weight: float = Field(0.5, ge=0, le=1, description="Weight of b.")


async def upload(request: Request) -> Response:
    """Save a state from its file."""
    server = server_of(request)
    models = server.ready_models()
    content = await read_body(request)
    served = model_of(content, models, request.query_params.get("model"))
    saved = server.states.put(read_state(content, served), served)
    return JSONResponse(saved.describe(), 201)


async def download(request: Request) -> Response:
    """A state: its description if JSON is accepted, else its file."""
    saved = server_of(request).states.get(request.path_params["id"])
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse(saved.describe())
    name = f"{saved.describe()['id'][:19]}.state"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(saved.state.to_bytes(), media_type=BINARY, headers=headers)


async def delete(request: Request) -> Response:
    """Drop a saved state."""
    server_of(request).states.delete(request.path_params["id"])
    return JSONResponse({"id": request.path_params["id"], "deleted": True})


async def read_on(request: Request) -> Response:
    """Read a text after a state; the state after it is a new one."""
    server = server_of(request)
    body = parse(ReadRequest, await read_json(request))
    saved = server.states.get(request.path_params["id"])
    if (body.text is None) == (body.tokens is None):
        raise bad_request("give either text or tokens", "text")
    if body.tokens is not None:
        check_tokens(body.tokens, "tokens")
    text = body.text if body.tokens is None else body.tokens
    plan = await asyncio.to_thread(_plan_reading, saved.served, saved.state, text, body.elapsed, server)
    answer = await server.submit(plan)
    (choice,) = await unless_gone(request, answer.collect())
    state = state_after(answer.jobs[0], choice, saved.served, saved.state)
    return JSONResponse(server.states.put(state, saved.served).describe(), 201)


def _plan_reading(served: Served, before: TextState, text: Any, elapsed: float, server: Server) -> Plan:
    prompt = read_prompt(served, text, server.settings.limits, "text", True)
    request = GenerationRequest(ltc=LtcOptions(return_state="id", elapsed=elapsed))
    options = Options(SamplingConfig(max_tokens=0), elapsed=elapsed)
    return Plan(served, request, [prompt], options, 1, 0, before)


async def mixed(request: Request) -> Response:
    """A state between two."""
    server = server_of(request)
    body = parse(MixRequest, await read_json(request))
    a, b = server.states.get(body.a), server.states.get(body.b)
    if a.state.model != b.state.model:
        raise bad_request("the states are of different models", "b", "state_mismatch")
    return JSONResponse(server.states.put(mix(a.state, b.state, body.weight), a.served).describe(), 201)


def state_after(job: Job, choice: Choice, served: Served, before: TextState | None) -> TextState:
    """The state after a choice of a job, whose prompt followed the state `before`."""
    assert choice.state is not None
    liquid, last = choice.state
    tokens = (0 if before is None else before.tokens[0]) + job.new_tokens + len(choice.tokens)
    return TextState(liquid, torch.tensor([last]), (tokens,), served.weights)


def returned(state: TextState, how: Literal["id", "base64"], served: Served, server: Server) -> str:
    """A state as an answer holds it."""
    if how == "base64":
        return base64.b64encode(state.to_bytes()).decode()
    return str(server.states.put(state, served).describe()["id"])
