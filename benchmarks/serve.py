"""Load test of `ltc serve`: clients that come when they like, whatever the server does.

    python benchmarks/serve.py runs/book --rate 20 --seconds 30        Poisson arrivals, mixed requests
    python benchmarks/serve.py runs/book --streams 64                  tokens per second against the decoder alone

It starts the server, and prints one JSON document. Tokens are counted by usage, never by events.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil

CANCELLED_PART, SLOW_PART = 0.1, 0.05


async def one(
    client: httpx2.AsyncClient, url: str, document: dict[str, Any], cancel: bool, slow: bool
) -> dict[str, Any]:
    """Send a streamed completion and measure it."""
    start, first, tokens, events = time.perf_counter(), None, 0, 0
    try:
        async with client.stream("POST", f"{url}/v1/completions", json=document) as answer:
            if answer.status_code != 200:
                return {"status": answer.status_code}
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                first = first or time.perf_counter() - start
                events += 1
                content = json.loads(line[6:])
                if "error" in content:
                    return {"status": "error"}
                tokens = (content.get("usage") or {}).get("completion_tokens", tokens)
                if cancel and events == 2:
                    return {"status": "cancelled"}
                if slow:
                    await asyncio.sleep(0.2)
    except httpx2.HTTPError as error:
        return {"status": f"lost: {type(error).__name__}"}
    return {"status": 200, "first": first, "seconds": time.perf_counter() - start, "tokens": tokens, "events": events}


def request(generator: random.Random, tokens: int) -> dict[str, Any]:
    """A mixed request."""
    options: dict[str, Any] = generator.choice(
        [
            {"temperature": 0.8},
            {"temperature": 0},
            {"top_p": 0.9},
            {"top_k": 20, "repetition_penalty": 1.1},
            {"logprobs": 3},
        ]
    )
    return {
        "prompt": "It was a day. " * generator.randint(1, 40),
        "max_tokens": generator.randint(tokens // 4, tokens),
        "seed": generator.randint(0, 1 << 30),
        "stream": True,
        "stream_options": {"include_usage": True},
        "ltc": {"ignore_separator": True},
        **options,
    }


async def arrivals(url: str, rate: float, seconds: float, tokens: int, seed: int) -> dict[str, Any]:
    """Poisson arrivals; a part of the clients goes, a part reads slowly."""
    generator, tasks = random.Random(seed), []
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx2.AsyncClient(timeout=120, limits=limits) as client:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            cancel, slow = generator.random() < CANCELLED_PART, generator.random() < SLOW_PART
            tasks.append(asyncio.ensure_future(one(client, url, request(generator, tokens), cancel, slow)))
            await asyncio.sleep(generator.expovariate(rate))
        found = await asyncio.gather(*tasks)
    done = [result for result in found if result["status"] == 200]
    return {
        "requests": len(found),
        "statuses": dict(Counter(str(result["status"]) for result in found)),
        "tokens_per_second": sum(result["tokens"] for result in done) / seconds,
        "first_token_ms": quantiles([1000 * result["first"] for result in done]),
    }


async def streams(url: str, count: int, tokens: int) -> dict[str, Any]:
    """Total speed of streams that begin together, and the first token of one more."""
    base = {"prompt": "It was", "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    base["ltc"] = {"ignore_separator": True}
    async with httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_connections=None)) as client:
        await one(client, url, {**base, "max_tokens": 16}, False, False)
        idle = [await one(client, url, {**base, "max_tokens": 4, "seed": n}, False, False) for n in range(20)]
        start = time.perf_counter()
        tasks = [asyncio.ensure_future(one(client, url, {**base, "seed": n}, False, False)) for n in range(count)]
        await asyncio.sleep(0.5)
        late = [await one(client, url, {**base, "max_tokens": 4, "seed": n}, False, False) for n in range(20)]
        found = await asyncio.gather(*tasks)
        seconds = time.perf_counter() - start
    return {
        "streams": count,
        "tokens_per_second": sum(result["tokens"] for result in found) / seconds,
        "first_token_idle_ms": quantiles([1000 * result["first"] for result in idle]),
        "first_token_busy_ms": quantiles([1000 * result["first"] for result in late if result["status"] == 200]),
    }


def decoder_alone(run: Path, count: int, tokens: int) -> float:
    """Tokens per second of the engine without HTTP, text or scheduler, in this process."""
    import numpy as np

    from ltc_textgen.config import SamplingConfig
    from ltc_textgen.generation.sampling import UniformStreams
    from ltc_textgen.io.paths import run_path
    from ltc_textgen.runs import load_run
    from ltc_textgen.serve.engine import Context, Options, RowState
    from ltc_textgen.serve.engines import engines_for

    loaded = load_run(run_path(run))
    engine = engines_for(loaded.network, "auto", count)[0]
    state, eos = loaded.network.initial_state(1).detach(), loaded.tokenizer.eos_token_id
    options = Options(SamplingConfig(max_tokens=tokens, temperature=1.0, ignore_eos=True))
    rows = [RowState(Context(state, np.array([eos])), options, UniformStreams(n, range(1)), eos) for n in range(count)]
    start = time.perf_counter()
    while rows[0].drawn < tokens:
        engine.draw(rows, 32)
    return count * tokens / (time.perf_counter() - start)


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    if len(values) < 2:
        return {"p50": values[0], "p99": values[0]} if values else {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rate", type=float, help="Requests per second.")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--streams", type=int, help="Streams that begin together.")
    parser.add_argument("--tokens", type=int, default=1000, help="Most tokens of a text.")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "ltc_textgen",
        "serve",
        str(options.run),
        "--port",
        "0",
        "--engine",
        options.engine,
    ]
    alone = decoder_alone(options.run, options.streams, options.tokens) if options.streams else None
    start = time.perf_counter()
    server = subprocess.Popen([*command, "--max-tokens", "1000000", "--slots", "96"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    process, ready = psutil.Process(server.pid), time.perf_counter() - start
    try:
        before = process.memory_info().rss
        if options.streams:
            figures = asyncio.run(streams(url, options.streams, options.tokens))
            figures |= {"alone_tokens_per_second": alone, "fraction": figures["tokens_per_second"] / (alone or 1)}
        else:
            figures = asyncio.run(arrivals(url, options.rate or 10, options.seconds, options.tokens, options.seed))
        grown = (process.memory_info().rss - before) / 1e6
        print(json.dumps({"ready_seconds": round(ready, 2), "memory_grown_mb": round(grown, 1), **figures}, indent=2))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
