"""Starts the server: binds the address at once, loads the models in a thread, and lets texts end before it shuts down.

On SIGTERM or SIGINT no new request is taken; running texts continue for at most `drain_timeout` seconds and are then
ended with finish_reason "abort". A second signal ends them at once.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from ltc_textgen.errors import LTCError
from ltc_textgen.serve.app import build_app
from ltc_textgen.serve.http_protocol import HttpProtocol
from ltc_textgen.serve.metrics import Metrics
from ltc_textgen.serve.models import Models, Served
from ltc_textgen.serve.prefix_cache import PrefixCache
from ltc_textgen.serve.scheduler import Scheduler
from ltc_textgen.serve.server import Server, ServerSettings
from ltc_textgen.serve.state_store import StateStore

GRACE_SECONDS = 2.0
"""Time for clients to take their last events, once every text has ended."""
LOADING = "load"
"""Name of the thread that loads the models."""


@dataclass(frozen=True)
class Place:
    """Where and how large a server is.

    Args:
        host: Address to bind.
        port: 0 takes a free one.
        slots: Texts that are written at the same time.
        queue: Texts that may wait.
        prefix_cache: Bytes of states of earlier prompts.
        state_memory: Bytes of states that clients save.
        state_ttl: Seconds after its last use that such a state is kept.
        drain_timeout: Seconds that texts may take to end after SIGTERM.
        settings: The rest.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    slots: int = 64
    queue: int = 256
    prefix_cache: int = 64 << 20
    state_memory: int = 256 << 20
    state_ttl: float = 3600.0
    drain_timeout: float = 30.0
    settings: ServerSettings = field(default_factory=ServerSettings)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its handlers of signals: it would cut streams, or wait for them without end."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


def run_server(place: Place, load: Callable[[], Sequence[Served]], announce: Callable[[str, Models], None]) -> int:
    """Serve until a signal comes.

    Args:
        place: Where.
        load: Loads the models; called in another thread once the address is bound.
        announce: Called with the address when requests are taken.

    Returns:
        The exit code: 0.

    Raises:
        LTCError: If the address cannot be bound, or a model not be loaded.
    """
    code = asyncio.run(_serve(place, load, announce))
    if any(thread.name == LOADING for thread in threading.enumerate()):
        # The interpreter would be taken down beneath a library that still runs, which may crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


async def _serve(place: Place, load: Callable[[], Sequence[Served]], announce: Callable[[str, Models], None]) -> int:
    metrics = Metrics()
    scheduler = Scheduler(place.slots, place.queue, metrics, PrefixCache(place.prefix_cache))
    server = Server(place.settings, scheduler, metrics, StateStore(place.state_memory, place.state_ttl, metrics))
    bound = bind(place.host, place.port)
    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "lifespan": "off"}
    http = _Uvicorn(uvicorn.Config(build_app(server), http=HttpProtocol, timeout_keep_alive=30, **quiet))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = 0

    def stopped() -> None:
        nonlocal signals
        signals += 1
        stop.set()
        if signals > 1:
            scheduler.abort()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)
    serving = asyncio.ensure_future(http.serve(sockets=[bound]))
    scheduler.start()
    try:
        await _load(server, load, stop)
        if not stop.is_set():
            announce(address(bound), server.ready_models())
        await asyncio.wait({serving, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _drain(server, place.drain_timeout)
        http.should_exit = True
        await _finish(http, serving)
        scheduler.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 0


async def _load(server: Server, load: Callable[[], Sequence[Served]], stop: asyncio.Event) -> None:
    """Load the models in a thread that does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[Sequence[Served]] = loop.create_future()

    def work() -> None:
        try:
            served = load()
        except BaseException as error:
            loop.call_soon_threadsafe(_settle, loaded, error)
        else:
            loop.call_soon_threadsafe(_settle, loaded, served)

    threading.Thread(target=work, name=LOADING, daemon=True).start()
    stopping = asyncio.ensure_future(stop.wait())
    waits: set[asyncio.Future[Any]] = {loaded, stopping}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if loaded.done():
        models = Models(loaded.result())
        for model in models:
            engine = model.engines[0]
            server.metrics.build(model.name, fingerprint=model.fingerprint(engine), engine=engine.name)
        server.models = models


def _settle(future: "asyncio.Future[Sequence[Served]]", result: Sequence[Served] | BaseException) -> None:
    if future.cancelled():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


async def _drain(server: Server, seconds: float) -> None:
    """Let texts end; abort those that take too long."""
    server.draining = True
    server.scheduler.drain()
    deadline = asyncio.get_running_loop().time() + seconds
    while server.scheduler.busy and server.scheduler.failure is None:
        if asyncio.get_running_loop().time() > deadline:
            server.scheduler.abort()
        await asyncio.sleep(0.01)


async def _finish(http: uvicorn.Server, serving: "asyncio.Future[None]") -> None:
    """Wait until answers have been sent, but not for clients that do not read them."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            await asyncio.shield(serving)
    http.force_exit = True
    for connection in list(http.server_state.connections):
        if connection.transport is not None:
            connection.transport.abort()
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(GRACE_SECONDS):
            await serving


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        LTCError: If it is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise LTCError(
            f"cannot listen on {host} port {port}: {error.strerror}; give another --host or --port"
        ) from None
    bound.setblocking(False)
    return bound


def address(bound: socket.socket) -> str:
    """The URL of a socket."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
