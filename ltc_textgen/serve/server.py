"""The objects that all request handlers use: settings, models, scheduler, states, metrics."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from starlette.requests import Request

from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.choices import Choice
from ltc_textgen.serve.jobs import Channel, Job, Piece
from ltc_textgen.serve.metrics import Metrics
from ltc_textgen.serve.models import Models
from ltc_textgen.serve.prepare import Limits, Plan
from ltc_textgen.serve.requests import parse_json
from ltc_textgen.serve.scheduler import Scheduler
from ltc_textgen.serve.state_store import StateStore
from ltc_textgen.serve.streaming import PING_SECONDS, disconnected

LINGERING = 4
"""Times its limit that a body is read on, though it is too large: many clients see an answer only after they have sent
all."""

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client has closed its connection before the answer."""


@dataclass(frozen=True)
class ServerSettings:
    """How a server behaves.

    Args:
        limits: What one request may ask for.
        max_body: Bytes of a request's body.
        stream_interval: Seconds between events of a stream.
        stall_timeout: Seconds after which a client that does not read is dropped.
        request_timeout: Seconds after which a request ends with what it has.
        body_timeout: Seconds within which a body must arrive.
        api_key: Key that clients must send; None accepts all.
        origins: Web pages of other origins that may call the API.
        hosts: Host names that requests may have, besides loopback ones; "*" for all.
        page: Serve the page.
        metrics: Who may read /metrics: everyone, those with the key, or no one.
        chat_template: How messages become a prompt: plain, or none to have no chat completions.
    """

    limits: Limits = field(default_factory=Limits)
    max_body: int = 16 << 20
    stream_interval: float = 0.04
    stall_timeout: float = 30.0
    request_timeout: float = 600.0
    body_timeout: float = 30.0
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    page: bool = True
    metrics: Literal["public", "key", "off"] = "public"
    chat_template: Literal["plain", "none"] = "plain"


@dataclass
class Server:
    """The parts of a server, as `request.app.state.server`.

    Args:
        settings: How it behaves.
        models: What it serves; None while it loads.
        scheduler: The engine thread.
        metrics: What happened so far.
        states: What clients have saved.
        draining: Whether it is ending.
    """

    settings: ServerSettings
    scheduler: Scheduler
    metrics: Metrics
    states: StateStore
    models: Models | None = None
    draining: bool = False

    def ready_models(self) -> Models:
        """The models.

        Raises:
            ApiError: 503 while they are being loaded.
        """
        if self.models is None:
            raise ApiError(503, "the models are being loaded", code="loading", headers={"Retry-After": "1"})
        return self.models

    async def submit(self, plan: Plan) -> "Answer":
        """Queue what a plan asks for.

        Raises:
            ApiError: If there is no room, or the server ends.
        """
        channel = Channel(asyncio.get_running_loop(), self.scheduler.wake)
        jobs = await asyncio.to_thread(plan.jobs, channel)
        self.scheduler.submit(jobs)
        return Answer(self, channel, jobs)


@dataclass
class Answer:
    """The pieces of a request as they come.

    Args:
        server: The server.
        channel: Where they arrive.
        jobs: Of the request.
    """

    server: Server
    channel: Channel
    jobs: Sequence[Job]

    @property
    def choices(self) -> int:
        """How many texts the request has."""
        return sum(job.samples for job in self.jobs)

    async def pieces(self, interval: float) -> AsyncGenerator[list[Piece], None]:
        """Pieces until every choice has ended, gathered for `interval` seconds; an empty list where nothing happens.

        If the iterator is closed before, or the request takes too long, its rows are cancelled.
        """
        left = set(range(self.choices))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.server.settings.request_timeout
        try:
            while left:
                try:
                    async with asyncio.timeout(min(PING_SECONDS, max(0.0, deadline - loop.time()))):
                        pieces = await self.channel.take()
                except TimeoutError:
                    late = loop.time() >= deadline
                    pieces = [Piece(index, reason="abort") for index in sorted(left)] if late else []
                    if late:
                        self.server.scheduler.cancel(self.jobs)
                left -= {piece.index for piece in pieces if piece.reason is not None or piece.error is not None}
                yield pieces
                if left and pieces:
                    await self.channel.rest(interval)
        finally:
            if left:
                self.server.scheduler.cancel(self.jobs)

    async def collect(self) -> list[Choice]:
        """All choices, once they have ended.

        Raises:
            ApiError: If the model failed.
        """
        choices = [Choice(index) for index in range(self.choices)]
        async with contextlib.aclosing(self.pieces(1.0)) as batches:
            async for pieces in batches:
                for piece in pieces:
                    choices[piece.index].add(piece)
                    if piece.error is not None:
                        raise piece.error
        return choices


def server_of(request: Request) -> Server:
    """The server that a request came to."""
    server = request.app.state.server
    assert isinstance(server, Server)
    return server


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 413 if it is too large, 408 if it takes too long.
    """
    settings = server_of(request).settings
    content, size = bytearray(), 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= settings.max_body:
                    content += chunk
                elif size > LINGERING * settings.max_body:
                    break
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", headers={"Connection": "close"}) from None
    if size > settings.max_body:
        raise ApiError(413, f"the body is larger than {settings.max_body:,} bytes", code="body_too_large")
    return bytes(content)


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        ApiError: If the content type, the size or the content is wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"expected Content-Type: application/json, got {kind[:80]!r}")
    content = await read_body(request)
    # A web page cannot send JSON to another origin unasked; large bodies are parsed outside the event loop.
    return await asyncio.to_thread(parse_json, content) if len(content) > 1 << 16 else parse_json(content)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of some work, which is cancelled if the client goes before.

    Raises:
        ClientGoneError: If it has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
