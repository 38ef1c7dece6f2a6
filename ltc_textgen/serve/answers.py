"""What the answers of completions and chat completions have in common, whole and streamed."""

import contextlib
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ltc_textgen.serve.choices import Choice, Usage, merge
from ltc_textgen.serve.prepare import Plan
from ltc_textgen.serve.server import Answer, Server, unless_gone
from ltc_textgen.serve.states_api import returned, state_after
from ltc_textgen.serve.streaming import DONE, PING, EventStream, event
from ltc_textgen.serve.tau_codes import TauReport


class Form(ABC):
    """The documents of one answer.

    Args:
        kind: `object` of the answer.
        prefix: Beginning of its id.
        plan: What was asked for.
        answer: Its jobs.
        server: The server.
    """

    def __init__(self, kind: str, prefix: str, plan: Plan, answer: Answer, server: Server) -> None:
        self._plan, self._answer, self._server = plan, answer, server
        self.usage = Usage(answer.jobs)
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": plan.served.name,
            "system_fingerprint": plan.served.fingerprint(answer.jobs[0].engine),
        }
        self._tau = tau_report(plan)

    @abstractmethod
    def choice(self, choice: Choice, index: int) -> dict[str, Any]:
        """A choice of an answer that is not streamed."""

    @abstractmethod
    def chunks(self, choice: Choice, first: bool) -> list[dict[str, Any]]:
        """The next part of a choice, as the choices of one or more events."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer that is not streamed."""
        self.usage.completion = sum(len(choice.tokens) for choice in choices)
        documents = [self.choice(choice, number) for number, choice in enumerate(self._selected(choices))]
        return {**self._head, "choices": documents, "usage": self.usage.document(), "ltc": {"seed": self._plan.seed}}

    def events(self, choice: Choice, first: bool) -> list[dict[str, Any]]:
        """The next part of a choice, as events."""
        documents = [{**self._head, "choices": [part]} for part in self.chunks(choice, first)]
        if first and documents:
            documents[0]["ltc"] = {"seed": self._plan.seed}
        return documents

    def last(self) -> dict[str, Any]:
        """The event with the usage, which has no choice."""
        return {**self._head, "choices": [], "usage": self.usage.document()}

    def _selected(self, choices: Sequence[Choice]) -> list[Choice]:
        """The choices to return: of each prompt the n likeliest, if more were written."""
        samples, n = self._plan.samples, self._plan.request.n
        selected: list[Choice] = []
        for start in range(0, len(choices), samples):
            ranked = sorted(choices[start : start + samples], key=lambda choice: -choice.mean_logprob)
            selected += ranked[:n] if samples > n else choices[start : start + samples]
        return selected

    def extension(self, choice: Choice) -> dict[str, Any]:
        """The `ltc` of a choice or of a part of one."""
        document: dict[str, Any] = {}
        if choice.stop is not None:
            document["stop_reason"] = choice.stop
        if self._tau is not None and (tau := self._tau.document(choice.index, choice.tau)) is not None:
            document["tau"] = tau
        how = self._plan.request.ltc.return_state
        if how is not None and choice.state is not None:
            job = self._answer.jobs[choice.index // self._plan.samples]
            state = state_after(job, choice, self._plan.served, self._plan.before)
            document["state"] = returned(state, how, self._plan.served, self._server)
        return {"ltc": document} if document else {}


def tau_report(plan: Plan) -> TauReport | None:
    """What is to be reported of time constants; None if nothing is."""
    options, settings = plan.request.ltc.tau, plan.served.model.settings
    if options is None:
        return None
    neurons = [plan.served.neuron(name, f"ltc.tau.neurons.{i}") for i, name in enumerate(options.neurons)]
    return TauReport(options.neurons, neurons, (settings.num_layers, settings.neurons), options.frames_hz)


async def respond(request: Request, server: Server, plan: Plan, answer: Answer, form: Form) -> Response:
    """The answer to a request whose jobs are queued."""
    if plan.request.stream:
        events = stream(server, plan, answer, form)
        return EventStream(events, server.settings.stall_timeout, server.metrics.stalled)
    return JSONResponse(form.whole(await unless_gone(request, answer.collect())))


async def stream(server: Server, plan: Plan, answer: Answer, form: Form) -> AsyncGenerator[bytes, None]:
    """The events of a stream."""
    options = plan.request.stream_options
    every = options is not None and options.continuous_usage_stats
    report = options is not None and options.include_usage
    begun: set[int] = set()
    async with contextlib.aclosing(answer.pieces(server.settings.stream_interval)) as batches:
        async for pieces in batches:
            events = [] if pieces else [PING]
            for choice in merge(pieces):
                form.usage.completion += len(choice.tokens)
                if choice.error is not None:
                    yield b"".join([*events, event(choice.error.body()), DONE])
                    return
                for document in form.events(choice, choice.index not in begun):
                    if report or every:
                        document["usage"] = form.usage.document() if every else None
                    events.append(event(document))
                begun.add(choice.index)
            yield b"".join(events)
    end = [event(form.last())] if report else []
    yield b"".join([*end, DONE])
