"""POST /v1/ltc/trace: what every neuron does while a text is read."""

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from safetensors.torch import save
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ltc_textgen.model.state import LiquidState
from ltc_textgen.serve.api_error import bad_request, engine_error
from ltc_textgen.serve.engine import SLICE, Neuron
from ltc_textgen.serve.models import Served
from ltc_textgen.serve.prepare import Limits, Prompt, read_prompt
from ltc_textgen.serve.requests import Body, NeuronName, check_tokens, parse
from ltc_textgen.serve.server import read_json, server_of, unless_gone
from ltc_textgen.serve.state_store import find_state
from ltc_textgen.serve.states_api import BINARY
from ltc_textgen.serve.tau_codes import tau_codes
from ltc_textgen.shapes import Float, Tensor

MOST_TOKENS = 8192
MOST_NAMED = 64

What = Literal["tau", "state", "logprob"]


class TraceRequest(Body):
    """Body of POST /v1/ltc/trace."""

    model: str | None = None
    text: str | None = None
    tokens: list[Any] | None = None
    state: str | None = Field(None, description="State before the text, as in ltc.state.")
    elapsed: float = Field(1.0, ge=0, le=1e6)
    what: What | list[What] = ["tau", "state", "logprob"]
    neurons: list[NeuronName] | Literal["all"] = "all"

    @field_validator("neurons")
    @classmethod
    def _few(cls, neurons: Any) -> Any:
        if isinstance(neurons, list) and not 0 < len(neurons) <= MOST_NAMED:
            raise ValueError(f'expected 1 to {MOST_NAMED} names, or "all"')
        return neurons


@dataclass
class Trace:
    """Numbers of a text, token after token.

    Args:
        logprob: Log-probability of each token; NaN for a first token that nothing predicts, (T,).
        tau: Time constants after each token, in token time, (T, neurons).
        states: States after each token, (T, neurons).
    """

    logprob: Float[Tensor, " T"]
    tau: Float[Tensor, "T neurons"]
    states: Float[Tensor, "T neurons"]


async def trace(request: Request) -> Response:
    """Handler of POST /v1/ltc/trace."""
    server = server_of(request)
    body = parse(TraceRequest, await read_json(request))
    served = server.ready_models().find(body.model)
    before = find_state(body.state, served, server.states)
    if (body.text is None) == (body.tokens is None):
        raise bad_request("give either text or tokens", "text")
    if body.tokens is not None:
        check_tokens(body.tokens, "tokens")
    given: Any = body.text if body.tokens is None else body.tokens
    limits = Limits(max_prompt_tokens=MOST_TOKENS)
    prompt = read_prompt(served, given, limits, "text" if body.tokens is None else "tokens", False)
    chosen = _chosen(served, body.neurons)
    state, last = (served.initial_state, None) if before is None else (before.liquid, int(before.last))
    steps = observed(served, prompt.ids, state, last, body.elapsed, chosen)
    parts = await unless_gone(request, asyncio.wrap_future(server.scheduler.run(steps)))
    whole = Trace(*(torch.cat(list(column)) for column in zip(*parts, strict=True)))
    if bool(whole.logprob[1:].isnan().any()):
        raise engine_error(f"{served.name}: the model's logits are NaN: its weights are broken")
    names = _names(served, body.neurons)
    if BINARY in request.headers.get("accept", ""):
        return Response(as_file(prompt.ids, whole, names, _what(body)), media_type=BINARY)
    return JSONResponse(as_json(served, prompt, whole, names, _what(body)))


def _what(body: TraceRequest) -> set[str]:
    return {body.what} if isinstance(body.what, str) else set(body.what)


def _chosen(served: Served, neurons: list[str] | Literal["all"]) -> Tensor | None:
    if neurons == "all":
        return None
    places = [served.neuron(name, f"neurons.{i}") for i, name in enumerate(neurons)]
    return torch.tensor([place.layer * served.model.settings.neurons + place.index for place in places])


def _names(served: Served, neurons: list[str] | Literal["all"]) -> list[str]:
    if neurons != "all":
        return neurons
    settings = served.model.settings
    every = (Neuron(layer, index) for layer in range(settings.num_layers) for index in range(settings.neurons))
    return [f"L{neuron.layer}N{neuron.index}" for neuron in every]


def observed(
    served: Served, ids: list[int], state: LiquidState, last: int | None, elapsed: float, chosen: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Read a text slice by slice: log-probabilities, time constants and states of each slice, as in `Trace`.

    Args:
        served: The model.
        ids: Tokens of the text.
        state: State before them, or before `last`.
        last: Token before them that was not read yet.
        elapsed: Time from each token to the next.
        chosen: Places of the neurons to report; all if None.
    """
    model = served.model
    device = model.embed_tokens.weight.device
    with torch.inference_mode():
        before = None
        if last is not None:
            hidden, state = model.advance(torch.tensor([[last]], device=device), state, elapsed)
            before = hidden[:, -1]
        for start in range(0, len(ids), SLICE):
            part = torch.tensor([ids[start : start + SLICE]], device=device)
            hidden, layers, state = model.observe(part, state, elapsed)
            predicting = hidden[0, :-1] if before is None else torch.cat([before, hidden[0, :-1]])
            logits = model.lm_head.logits(predicting).float().log_softmax(dim=1)
            logprob = logits.gather(1, part[0, len(part[0]) - len(predicting) :, None])[:, 0]
            logprob = torch.cat([logprob.new_full((len(part[0]) - len(logprob),), float("nan")), logprob])
            tau = torch.cat([seen.tau[0] for seen in layers], dim=1)
            states = torch.cat([seen.states[0] for seen in layers], dim=1)
            before = hidden[:, -1]
            if chosen is not None:
                tau, states = tau[:, chosen], states[:, chosen]
            yield logprob.cpu(), tau.cpu(), states.cpu()


def as_json(served: Served, prompt: Prompt, found: Trace, names: list[str], what: set[str]) -> dict[str, Any]:
    """A trace as JSON: time constants as codes, states as float16, both in base64, token after token."""
    places = [*prompt.places(served.tokenizer), len(prompt.text)]
    document: dict[str, Any] = {
        "object": "ltc.trace",
        "model": served.name,
        "tokens": prompt.ids,
        "text_offset": places[:-1],
        "shape": list(found.tau.shape),
        "neurons": names,
    }
    if "logprob" in what:
        logprob = found.logprob.clamp_min(-9999.0)
        document["logprob"] = [None if value != value else value for value in logprob.tolist()]
    if "tau" in what:
        document["tau"] = _encoded(tau_codes(found.tau))
    if "state" in what:
        document["state"] = _encoded(found.states.half())
    return document


def as_file(ids: list[int], found: Trace, names: list[str], what: set[str]) -> bytes:
    """A trace as a safetensors file: ids (T,), logprob (T,), tau and state (T, neurons) in float16."""
    tensors = {
        "ids": torch.tensor(ids),
        "logprob": found.logprob,
        "tau": found.tau.half(),
        "state": found.states.half(),
    }
    wanted = {"ids", *what}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name in wanted}
    return save(kept, metadata={"kind": "ltc trace of the server", "neurons": ",".join(names)})


def _encoded(numbers: Tensor) -> str:
    return base64.b64encode(numbers.contiguous().numpy().tobytes()).decode()
