"""The application: which path is answered by which handler."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ltc_textgen.serve import metrics as metrics_text
from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.chat import chat_completions
from ltc_textgen.serve.completions import completions
from ltc_textgen.serve.guard import Guard, failed
from ltc_textgen.serve.server import Server, server_of
from ltc_textgen.serve.states_api import delete, download, mixed, read_on, upload
from ltc_textgen.serve.tokens_api import detokenize, tokenize, tokenizer_info
from ltc_textgen.serve.trace_api import trace

STATIC = Path(__file__).parent / "static"


def build_app(server: Server) -> ASGIApp:
    """The application of a server."""
    routes: list[Route | Mount] = [
        Route("/health", health),
        Route("/ready", ready),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/ltc/trace", trace, methods=["POST"]),
        Route("/v1/ltc/states", upload, methods=["POST"]),
        Route("/v1/ltc/states/mix", mixed, methods=["POST"]),
        Route("/v1/ltc/states/{id}", download, methods=["GET"]),
        Route("/v1/ltc/states/{id}", delete, methods=["DELETE"]),
        Route("/v1/ltc/states/{id}/read", read_on, methods=["POST"]),
    ]
    for prefix in ("", "/v1"):
        routes += [
            Route(f"{prefix}/tokenize", tokenize, methods=["POST"]),
            Route(f"{prefix}/detokenize", detokenize, methods=["POST"]),
            Route(f"{prefix}/tokenizer_info", tokenizer_info),
        ]
    if server.settings.metrics != "off":
        routes.append(Route("/metrics", metrics))
    if server.settings.page:
        routes += [Route("/", page), Mount("/static", StaticFiles(directory=STATIC))]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error, ApiError: _api_error})
    app.state.server = server
    return Guard(app, server.settings, server.metrics, [route.path for route in routes])


async def health(request: Request) -> Response:
    """Whether the process can answer: 503 if its engine thread has ended."""
    scheduler = server_of(request).scheduler
    if scheduler.failure is not None:
        return JSONResponse({"status": "dead", "error": scheduler.failure}, 503)
    broken = dict(scheduler.broken)
    return JSONResponse({"status": "degraded", "models": broken} if broken else {"status": "ok"})


async def ready(request: Request) -> Response:
    """Whether requests are taken: 503 while models are loaded, and while the server ends."""
    server = server_of(request)
    status = "draining" if server.draining else "loading" if server.models is None else "ready"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


async def models(request: Request) -> Response:
    """The models, as OpenAI lists them."""
    served = server_of(request).ready_models()
    return JSONResponse({"object": "list", "data": [model.describe() for model in served]})


async def model(request: Request) -> Response:
    """The description of one model."""
    return JSONResponse(server_of(request).ready_models().find(request.path_params["name"]).describe())


async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    return Response(server_of(request).metrics.text(), media_type=metrics_text.CONTENT_TYPE)


async def page(request: Request) -> Response:
    """The page for a browser."""
    return FileResponse(STATIC / "index.html")


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette raises (404, 405), in the form of the API."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path[:200]
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        return failed(ApiError(405, f"{method} is not allowed on {path}", code="method_not_allowed", headers=allowed))
    if error.status_code == 404:
        return failed(ApiError(404, f"there is no {path}", code="not_found"))
    return failed(ApiError(400, f"{method} {path}: {error.detail}"))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return failed(error)
