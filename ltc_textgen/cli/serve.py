"""`ltc serve`: trained networks behind OpenAI's API, with a page to write on."""

import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ltc_textgen.cli.common import Device, Threads, prepare_torch, seconds
from ltc_textgen.errors import UsageError
from ltc_textgen.io.extras import install_line
from ltc_textgen.io.output import print_line, print_message
from ltc_textgen.io.paths import os_reason, run_path, user_path

if TYPE_CHECKING:
    from ltc_textgen.serve.models import Models, Served

KEY_VARIABLE = "LTC_API_KEY"

EXAMPLES = """Examples:

`ltc serve runs/book` (then open the address that it prints)

`ltc serve runs/book poems=runs/p2 --port 9000` (two models, "book" and "poems")

`LTC_API_KEY=... ltc serve runs/book --host 0.0.0.0 --allowed-host text.example.org`

`curl localhost:8080/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "It was", "max_tokens": 50}'`
"""

Runs = Annotated[
    list[str], typer.Argument(metavar="[NAME=]RUN_DIR...", help="Run directories; the name is the folder's.")
]
EngineName = Literal["auto", "native", "int8", "torch"]


def serve(
    runs: Runs,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File whose first line is the key of clients; or set {KEY_VARIABLE}.")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="native (fused, CPU), int8, torch, or auto.")] = "auto",
    slots: Annotated[int, typer.Option(min=1, max=4096, help="Texts that are written at the same time.")] = 64,
    queue: Annotated[int, typer.Option(min=0, max=1_000_000, help="Texts that may wait; more are answered 429.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Most tokens of one text.")] = 4096,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one prompt.")] = 1_000_000,
    max_body: Annotated[str, typer.Option(help="Most bytes of a request: 500kB, 16MB.")] = "16MB",
    prefix_cache: Annotated[str, typer.Option(help="Memory for states of earlier prompts; 0 keeps none.")] = "64MB",
    state_memory: Annotated[str, typer.Option(help="Memory for states that clients save.")] = "256MB",
    state_ttl: Annotated[str, typer.Option(help="A saved state that is not used for so long is dropped.")] = "1h",
    stream_interval: Annotated[str, typer.Option(help="Time between the events of a stream.")] = "40ms",
    stall_timeout: Annotated[str, typer.Option(help="A client that reads nothing for so long is dropped.")] = "30s",
    request_timeout: Annotated[str, typer.Option(help="A text that takes longer is ended.")] = "600s",
    drain_timeout: Annotated[str, typer.Option(help="Time for texts to end after SIGTERM.")] = "30s",
    chat_template: Annotated[
        Literal["plain", "none"], typer.Option(help="plain joins messages by line ends; none offers no chat.")
    ] = "plain",
    allow_origin: Annotated[list[str] | None, typer.Option(help="Origin of web pages that may call the API.")] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Host name of this server, in addition to loopback names; * for all.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the page at /.")] = True,
    metrics: Annotated[Literal["public", "key", "off"], typer.Option(help="Who may read /metrics.")] = "public",
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request on stderr.")] = False,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Serve trained networks over HTTP: OpenAI's API, states, and a page that shows the neurons."""
    paths = named_runs(runs)
    key = key_for(host, api_key_file)
    log_to_stderr(access_log)
    try:
        from ltc_textgen.serve.run_server import Place, run_server
    except ModuleNotFoundError as error:
        raise UsageError(f"ltc serve needs the package {error.name}: {install_line('serve')}") from None
    from ltc_textgen.serve.prepare import Limits
    from ltc_textgen.serve.server import ServerSettings

    settings = ServerSettings(
        limits=Limits(max_tokens, max_prompt_tokens),
        max_body=size(max_body),
        stream_interval=duration(stream_interval),
        stall_timeout=duration(stall_timeout),
        request_timeout=duration(request_timeout),
        api_key=key,
        origins=tuple(allow_origin or ()),
        hosts=tuple(name.lower() for name in allowed_host or ()),
        page=page,
        metrics=metrics,
        chat_template=chat_template,
    )
    memory = size(prefix_cache), size(state_memory), duration(state_ttl)
    place = Place(host, port, slots, queue, *memory, duration(drain_timeout), settings)
    return run_server(place, lambda: load(paths, engine, slots, device, threads), announce)


def log_to_stderr(requests: bool) -> None:
    """Log errors, and requests if wanted."""
    import logging

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("ltc_textgen.serve").setLevel(logging.INFO if requests else logging.WARNING)


def load(
    paths: dict[str, Path], engine: EngineName, slots: int, device: str, threads: int | None
) -> "Sequence[Served]":
    """Load the runs and prepare their engines."""
    from ltc_textgen.runs import load_run, memory_of
    from ltc_textgen.serve.engines import engines_for
    from ltc_textgen.serve.models import Served

    where = prepare_torch(device, threads)
    served = []
    for name, path in paths.items():
        run = load_run(run_path(path), where)
        served.append(Served(name, run.network, run.tokenizer, engines_for(run.network, engine, slots), memory_of(run)))
    return served


def announce(url: str, models: "Models") -> None:
    """Say where the server is, on stdout, and how to try it."""
    for model in models:
        facts: Any = model.describe()["ltc"]
        print_message(f"{model.name}: engine {facts['engine']}, {facts['fingerprint']}")
    print_line(url)
    body = '{"prompt": "It was", "max_tokens": 50}'
    print_message(f"try: curl {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'")


def named_runs(runs: list[str]) -> dict[str, Path]:
    """Run directories by name: NAME=RUN_DIR, or the name of the folder.

    Raises:
        UsageError: If two have the same name.
    """
    named: dict[str, Path] = {}
    for text in runs:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = Path(text).resolve().name, text
        if not name or not path or name in named:
            raise UsageError(f"{text}: two runs are called {name!r}, or one has no name: give them as NAME=RUN_DIR")
        named[name] = Path(path)
    return named


def key_for(host: str, path: Path | None) -> str | None:
    """The key of clients, which an address that others can reach must have; see `read_key`."""
    key = read_key(path)
    if key is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached by others: set {KEY_VARIABLE} or give --api-key-file, so that only clients "
            "with the key are answered"
        )
    return key


def read_key(path: Path | None) -> str | None:
    """The key of clients, from a file or the environment; None without one.

    Raises:
        UsageError: If the file cannot be read, or the key is empty or not printable ASCII.
    """
    if path is None:
        key, where = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    else:
        try:
            key, where = (user_path(path).read_text(encoding="utf-8").splitlines() or [""])[0].strip(), str(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = os_reason(error, path) if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(f"cannot read the key file {path}: {reason}") from None
    if key is not None and not re.fullmatch(r"[!-~]{1,512}", key):
        raise UsageError(f"{where}: a key has 1 to 512 printable ASCII characters without blanks")
    return key


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def duration(text: str) -> float:
    """Seconds from "40ms", "30s" or "5m".

    Raises:
        UsageError: If it is no duration above zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*ms\s*", text)
    return float(found[1]) / 1000 if found else seconds(text)


def size(text: str) -> int:
    """Bytes from "500kB", "16MB", "1GB" or a number.

    Raises:
        UsageError: If it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kMG]i?)B?\s*", text)
    if not found:
        raise UsageError(f"not a size: {text!r} (write 500kB, 16MB or 1GB)")
    return int(float(found[1]) * {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}[found[2].removesuffix("i")])
