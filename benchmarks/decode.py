"""Speed of writing text: the native decoder beside PyTorch, transformers' `generate`, nanoGPT and the machine's limits.

    python benchmarks/decode.py                            a model of the size of the preset char-best
    python benchmarks/decode.py --nanogpt FOLDER           also nanoGPT, a clone with out-shakespeare-char/ckpt.pt in it
    python benchmarks/decode.py --run runs/book            a trained run; then also the cold start of `ltc generate`
    python benchmarks/decode.py --million                  also a million tokens: time per token and memory
    python benchmarks/decode.py --quick                    shows that it runs, says nothing about speed

Weights are random where no run is given: speed does not depend on them. Contenders are timed in turn, and figures are
medians over rounds. Prints a table; the last line of stdout is one JSON document.
"""

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from ltc_textgen.artifacts import load_run
from ltc_textgen.benchmarking import race
from ltc_textgen.config import ModelConfig, SamplingConfig
from ltc_textgen.generation.native import NativeDecoder
from ltc_textgen.generation.writers import open_writer
from ltc_textgen.kernels import report
from ltc_textgen.kernels.decoder import Choice
from ltc_textgen.model import LiquidTimeConstantNetwork
from ltc_textgen.recipes import load_preset

TEMPERATURE = 0.8

LIMITS = """
#include <stddef.h>
typedef float v __attribute__((vector_size(64)));
/* Sums n floats (a multiple of 128) `times` times, in two halves on two threads and so on. */
float stream(const float *a, size_t n, int times, int threads) {
  float total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total)
  for (int t = 0; t < threads; ++t) {
    size_t each = n / threads / 128 * 128;
    const v *p = (const v *)(a + each * t);
    v s[8] = {0};
    for (int k = 0; k < times; ++k)
      for (size_t i = 0; i < each / 16; i += 8)
        for (int j = 0; j < 8; ++j) s[j] += p[i + j];
    for (int j = 0; j < 8; ++j) for (int l = 0; l < 16; ++l) total += s[j][l];
  }
  return total;
}
/* times * 16 multiplications and additions of 16 floats on each thread. */
float arithmetic(long times, int threads) {
  float total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total)
  for (int t = 0; t < threads; ++t) {
    v s[16] = {0}, x = (v){0} + 1.0001f, y = (v){0} + 0.999f;
    for (long k = 0; k < times; ++k)
      for (int j = 0; j < 16; ++j) s[j] = x * s[j] + y;
    for (int j = 0; j < 16; ++j) for (int l = 0; l < 16; ++l) total += s[j][l];
  }
  return total;
}
"""


def limits(size: int, threads: int) -> dict[str, float] | None:
    """Bytes/s at which `size` bytes are read over and over, and multiplications/s; None without a C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "limits.c", Path(folder) / "limits.so"
        source.write_text(LIMITS)
        flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi", "-w"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", str(built)], check=True)
        if not built.exists():
            return None
        library = ctypes.CDLL(str(built))
    values = torch.ones(size // 4 // (128 * threads) * 128 * threads + 16)
    start = (-values.data_ptr() % 64) // 4
    address, count = values[start:].data_ptr(), len(values) - 16
    best_read = best_work = float("inf")
    for _ in range(9):
        begin = time.perf_counter()
        library.stream(ctypes.c_void_p(address), ctypes.c_size_t(count), 50, threads)
        middle = time.perf_counter()
        library.arithmetic(ctypes.c_long(100_000), threads)
        best_read = min(best_read, (middle - begin) / 50)
        best_work = min(best_work, time.perf_counter() - middle)
    return {
        "bytes_per_second": count * 4 / best_read,
        "multiplications_per_second": 256 * 100_000 * threads / best_work,
    }


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def build(run: Path | None) -> LiquidTimeConstantNetwork:
    if run:
        return load_run(run).model
    torch.manual_seed(0)
    return LiquidTimeConstantNetwork.from_settings(
        ModelConfig.parse(load_preset("char-best")["model"] | {"input_size": 65}, "char-best")
    ).eval()


def native_call(decoder: NativeDecoder, batch: int, tokens: int) -> Callable[[], Any]:
    ids, choice = torch.zeros(batch, 1, dtype=torch.int64), Choice(TEMPERATURE)
    uniform = torch.rand(batch, tokens, dtype=torch.float64)
    return lambda: decoder.draw(ids, None, choice, tokens, uniform)


def reference_call(model: LiquidTimeConstantNetwork, tokens: int) -> Callable[[], Any]:
    sampling = SamplingConfig(temperature=TEMPERATURE, max_tokens=tokens, seed=0)

    def call() -> None:
        writer = open_writer(model, 0, [1], sampling, 0, engine="torch")
        for _ in range(tokens):
            writer.draw()

    return call


def transformers_call(model: LiquidTimeConstantNetwork, tokens: int) -> Callable[[], Any]:
    ids = torch.ones(1, 1, dtype=torch.int64)
    options = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
    return lambda: model.generate(ids, max_new_tokens=tokens, **options)


def nanogpt_call(folder: Path, tokens: int) -> Callable[[], Any]:
    """What its sample.py --device=cpu --compile=False does for one sample, loading and printing left out."""
    sys.path.insert(0, str(folder))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    saved = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", map_location="cpu")
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    start = torch.zeros(1, 1, dtype=torch.int64)

    @torch.no_grad()
    def call() -> None:
        model.generate(start, tokens, temperature=TEMPERATURE, top_k=200)

    return call


def million(decoder: NativeDecoder, tokens: int) -> dict[str, float]:
    """Time per token near the start and at the end of one text, and how much memory grew between."""
    choice, per_call = Choice(TEMPERATURE), 100
    ids, state = torch.zeros(1, 1, dtype=torch.int64), None
    draw = torch.Generator().manual_seed(0)
    seconds, resident = [], 0
    for index in range(tokens // per_call):
        uniform = torch.rand(1, per_call, dtype=torch.float64, generator=draw)
        start = time.perf_counter()
        drawn, state = decoder.draw(ids, state, choice, per_call, uniform)
        seconds.append((time.perf_counter() - start) / per_call)
        ids = drawn.tokens[:, -1:]
        if index == 100:
            resident = psutil.Process().memory_info().rss
    few = min(100, len(seconds) // 3)
    begin, end = statistics.median(seconds[1 : few + 1]), statistics.median(seconds[-few:])
    grown = psutil.Process().memory_info().rss - resident
    return {
        "microseconds_at_start": begin * 1e6,
        "microseconds_at_end": end * 1e6,
        "ratio": end / begin,
        "grown_bytes": grown,
    }


def cold_start(run: Path) -> float:
    """Seconds from the start of `ltc generate` to the end of its first token; median of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "ltc_textgen", "generate", str(run), "-p", "a", "-n", "1", "--device", "cpu"]
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    quick = arguments.quick
    tokens, rounds, batches = (8, 2, (1, 3)) if quick else (400, 7, (1, 2, 4, 8, 16, 32, 64, 128, 256))
    model, threads = build(arguments.run), torch.get_num_threads()
    engines = {"native": NativeDecoder(model), "int8": NativeDecoder(model, int8=True)}
    calls = {f"{name}, batch 1": native_call(decoder, 1, tokens) for name, decoder in engines.items()}
    calls |= {"torch": reference_call(model, tokens), "transformers generate": transformers_call(model, tokens)}
    if arguments.nanogpt:
        calls["nanoGPT"] = nanogpt_call(arguments.nanogpt, tokens)
    say("batch 1 ...")
    speeds = {name: tokens / statistics.median(t) for name, t in race(calls, rounds, 0.0).items()}
    say("batches ...")
    steps = max(4, tokens // 10)
    sweep = {f"{n}, batch {b}": native_call(d, b, steps) for n, d in engines.items() for b in batches if b > 1}
    for name, seconds in race(sweep, rounds, 0.0).items():
        speeds[name] = int(name.split()[-1]) * steps / statistics.median(seconds)
    size = engines["native"].core.weight_bytes
    result: dict[str, Any] = {
        "threads": threads,
        "kernels": report()["cpu"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_per_second": speeds,
        "ratios": {name: speeds["native, batch 1"] / speeds[name] for name in calls if "batch" not in name},
    }
    if not quick:
        for name in engines:
            result["ratios"][f"{name}: batch 64 over batch 1"] = (
                speeds[f"{name}, batch 64"] / speeds[f"{name}, batch 1"]
            )
    result["roofline"] = roofline(size, threads, speeds)
    if arguments.million:
        say("a million tokens ...")
        result["million"] = {n: million(d, 3_000 if quick else 1_000_000) for n, d in engines.items()}
    if arguments.run:
        result["cold_start_seconds"] = cold_start(arguments.run)
    return result


def roofline(size: int, threads: int, speeds: dict[str, float]) -> dict[str, float] | None:
    """What reading the weights, and multiplying by them, allows at most."""
    found, small = limits(size, threads), limits(size // 4, threads)
    if found is None or small is None:
        return None
    ceiling, batched = found["bytes_per_second"] / size, found["multiplications_per_second"] / (size / 4)
    return {
        **found,
        "weight_bytes": size,
        "batch1_ceiling": ceiling,
        "batch1_share": speeds["native, batch 1"] / ceiling,
        "int8_batch1_ceiling": small["bytes_per_second"] / (size // 4),
        "int8_batch1_share": speeds["int8, batch 1"] * (size // 4) / small["bytes_per_second"],
        "batched_ceiling": batched,
        "batch64_over_batch1_ceiling": batched / ceiling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments)
    for name, speed in result["tokens_per_second"].items():
        print(f"{name:<28}{speed:>12,.0f} tokens/s")
    for name, times in result["ratios"].items():
        print(f"{name:<36}{times:>6.1f}x")
    for topic in ("roofline", "million", "cold_start_seconds"):
        if topic in result:
            print(topic, result[topic])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
