"""POST /v1/completions: continue texts or token ids."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ltc_textgen.model.text_state import TextState
from ltc_textgen.serve.answers import Form, respond, tau_report
from ltc_textgen.serve.choices import Choice, completion_logprobs
from ltc_textgen.serve.engine import Scored
from ltc_textgen.serve.models import Served
from ltc_textgen.serve.prepare import (
    Limits,
    Plan,
    Prompt,
    checked_max_tokens,
    options_of,
    read_prompt,
    seed_of,
)
from ltc_textgen.serve.requests import CompletionRequest, parse
from ltc_textgen.serve.server import Answer, Server, read_json, server_of
from ltc_textgen.serve.state_store import find_state


async def completions(request: Request) -> Response:
    """Handler of POST /v1/completions."""
    server = server_of(request)
    body = parse(CompletionRequest, await read_json(request))
    served = server.ready_models().find(body.model)
    before = find_state(body.ltc.state, served, server.states)
    plan = await asyncio.to_thread(plan_completion, body, served, before, server.settings.limits)
    answer = await server.submit(plan)
    return await respond(request, server, plan, answer, CompletionForm(plan, answer, server))


def plan_completion(body: CompletionRequest, served: Served, before: TextState | None, limits: Limits) -> Plan:
    """What a completion asks for.

    Raises:
        ApiError: If it cannot be done.
    """
    max_tokens = checked_max_tokens(body.max_tokens, limits, "max_tokens")
    samples = body.best_of or body.n
    logprobs = body.logprobs
    if samples > body.n and logprobs is None:
        logprobs = 0  # they decide which texts are returned
    options = options_of(body, served, max_tokens, logprobs)
    prompts = [
        read_prompt(served, prompt, limits, param, before is not None) for param, prompt in body.prompts().items()
    ]
    score = body.logprobs if body.echo else None
    plan = Plan(served, body, prompts, options, samples, seed_of(body), before, score)
    tau_report(plan)  # raises if a neuron does not exist
    return plan


class CompletionForm(Form):
    """The documents of one completion; see `Form`."""

    def __init__(self, plan: Plan, answer: Answer, server: Server) -> None:
        super().__init__("text_completion", "cmpl", plan, answer, server)
        assert isinstance(plan.request, CompletionRequest)
        self._body = plan.request

    def choice(self, choice: Choice, index: int) -> dict[str, Any]:
        return self._part(choice, index, True)

    def chunks(self, choice: Choice, first: bool) -> list[dict[str, Any]]:
        return [self._part(choice, choice.index, first)]

    def _part(self, choice: Choice, index: int, first: bool) -> dict[str, Any]:
        """A choice, or the next part of it; the first part has the prompt, if it is to be echoed."""
        prompt = self._plan.prompts[choice.index // self._plan.samples]
        base = len(prompt.text) if self._body.echo else 0
        echo = first and self._body.echo
        document: dict[str, Any] = {
            "index": index,
            "text": prompt.text + choice.text if echo else choice.text,
            "logprobs": None,
            "finish_reason": choice.reason,
        }
        if self._body.logprobs is not None:
            tokens, scored = choice.tokens, list[Scored | None](choice.scored)
            offsets = [base + offset for offset in choice.offsets]
            if echo:
                before, theirs, places = self._echoed(prompt, choice.prompt or [])
                tokens, scored, offsets = before + tokens, theirs + scored, places + offsets
            document["logprobs"] = completion_logprobs(self._plan.served.spelling, tokens, scored, offsets)
        return document | self.extension(choice)

    def _echoed(self, prompt: Prompt, scored: list[Scored]) -> tuple[list[int], list[Scored | None], list[int]]:
        """Tokens of a prompt with their scores and places; without a state before it nothing predicts the first."""
        first: list[Scored | None] = [None] * (len(prompt.ids) - len(scored))
        return prompt.ids, first + scored, prompt.places(self._plan.served.tokenizer)
