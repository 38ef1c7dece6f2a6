"""Middleware before every handler: request ids, hosts, origins, the key, the log and the form of errors.

A hostile page can make a browser send requests to any address, so a server on loopback checks the Host header (against
DNS rebinding), rejects pages of other origins unless they are allowed, and accepts JSON alone.
"""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltc_textgen.io.output import one_line
from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.http_protocol import TRANSPORT
from ltc_textgen.serve.metrics import Metrics
from ltc_textgen.serve.server import ClientGoneError, ServerSettings
from ltc_textgen.serve.streaming import StalledError

LOG = logging.getLogger("ltc_textgen.serve")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
PUBLIC = {"/health", "/ready", "/"}
SAFE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
CORS = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "authorization, content-type, x-api-key, x-request-id",
    "Access-Control-Expose-Headers": "x-request-id, retry-after",
    "Access-Control-Max-Age": "600",
}
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": CONTENT_POLICY,
}


class Guard:
    """Middleware around the application.

    Args:
        app: The application.
        settings: Key, hosts and origins.
        metrics: Where answers are counted.
        endpoints: Paths that are counted under their own name; others are "other".
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, endpoints: Iterable[str]) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._endpoints = frozenset(endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, start, status = Headers(scope=scope), time.perf_counter(), 0
        request_id = headers.get("x-request-id", "")
        if not SAFE_ID.fullmatch(request_id):
            request_id = f"req_{secrets.token_hex(12)}"
        extra = {"x-request-id": request_id, **SECURITY, **self._cors(headers)}

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(extra)
            await send(message)

        try:
            await self._answer(scope, headers, receive, send_with_headers)
        except ApiError as error:
            if not status:
                await failed(error)(scope, receive, send_with_headers)
        except StalledError:
            scope[TRANSPORT].abort()
        except (ClientGoneError, ClientDisconnect):
            status = status or 499
        except Exception:
            LOG.exception("internal error in request %s", request_id)
            if not status:
                internal = ApiError(500, "internal error; see the log of the server", code="internal_error")
                await failed(internal)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            path = scope["path"]
            self._metrics.request(path if path in self._endpoints else "other", status, seconds)
            client = (scope.get("client") or ("?",))[0]
            LOG.info(
                "%s %s %s %d %.4f s %s", client, scope["method"], one_line(path[:200]), status, seconds, request_id
            )

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        self._check_host(headers)
        self._check_origin(headers)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=204)(scope, receive, send)
            return
        if not self._is_public(scope["path"]):
            self._check_key(headers)
        await self._app(scope, receive, send)

    def _is_public(self, path: str) -> bool:
        if path == "/metrics":
            return self._settings.metrics == "public"
        return path in PUBLIC or path.startswith("/static/")

    def _check_host(self, headers: Headers) -> None:
        allowed = {*LOOPBACK, *self._settings.hosts}
        host = re.sub(r":\d+$", "", headers.get("host", "")).lower()
        if "*" not in allowed and host not in allowed:
            raise ApiError(403, f"host {host[:80]!r} is not one of this server; see --allowed-host", code="host")

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers) and origin not in self._settings.origins:
            raise ApiError(403, f"origin {origin[:80]!r} may not call this server; see --allow-origin", code="origin")

    @staticmethod
    def _is_own(origin: str, headers: Headers) -> bool:
        return origin.partition("://")[2].lower() == headers.get("host", "").lower()

    def _cors(self, headers: Headers) -> dict[str, str]:
        origin = headers.get("origin", "")
        allowed = {"Access-Control-Allow-Origin": origin, "Vary": "Origin", **CORS}
        return allowed if origin in self._settings.origins else {"Cross-Origin-Resource-Policy": "same-origin"}

    def _check_key(self, headers: Headers) -> None:
        key = self._settings.api_key
        if key is None:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), key.encode()):
            message = "the API key is missing or wrong: send it as Authorization: Bearer KEY, or X-Api-Key: KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def failed(error: ApiError) -> Response:
    """The answer that is an error."""
    return JSONResponse(error.body(), error.status, error.headers)
