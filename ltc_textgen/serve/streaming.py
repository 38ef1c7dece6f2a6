"""Server-sent events, with a limit on their rate and on how long a client may not read.

Lines are `data: {json}` and, while nothing happens, comments; never `id:` or `event:`, on which OpenAI's Python client
fails. The last event is [DONE], after an error too.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
PING_SECONDS = 15.0


def event(document: Any) -> bytes:
    """The bytes of one server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends events until they end, the client goes, or it stops reading.

    Args:
        events: Events as bytes; closed in every case.
        stall_timeout: Seconds after which a client that takes nothing is dropped.
        stalled: Called then.
        headers: Headers of the answer.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        stall_timeout: float,
        stalled: Callable[[], None],
        headers: dict[str, str] | None = None,
    ) -> None:
        quiet = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers={**quiet, **(headers or {})}, media_type=self.media_type)
        del self.headers["content-length"]
        self._events, self._stall_timeout, self._stalled = events, stall_timeout, stalled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._events.aclose()
        if not sending.cancelled():
            sending.result()  # raises what ended it

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for content in self._events:
            try:
                async with asyncio.timeout(self._stall_timeout):
                    await send({"type": "http.response.body", "body": content, "more_body": True})
            except TimeoutError:
                self._stalled()
                raise StalledError from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class StalledError(OSError):
    """The client has not read its stream for too long; the connection is closed without an end."""


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone. The body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
