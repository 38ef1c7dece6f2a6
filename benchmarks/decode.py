"""Generation speed: the native decoder compared with PyTorch, transformers' `generate`, nanoGPT and the roofline.

    python benchmarks/decode.py                            a model of preset char-best's size, random weights
    python benchmarks/decode.py --nanogpt FOLDER           also nanoGPT: a clone with out-shakespeare-char/ckpt.pt
    python benchmarks/decode.py --run runs/book            a trained run; also the cold start of `ltc generate`
    python benchmarks/decode.py --export FOLDER            also the cold start of an exported program
    python benchmarks/decode.py --million                  also a million tokens: time per token and memory growth
    python benchmarks/decode.py --quick                    a smoke test; its figures mean nothing

Contenders are timed in turn; figures are medians over rounds. Prints a table; the last line of stdout is one JSON
document.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from lib.limits import limits
from lib.report import log, print_json
from ltc_textgen.benchmarking import race
from ltc_textgen.config import ModelConfig, SamplingConfig
from ltc_textgen.generation.engines import Request, open_engine
from ltc_textgen.generation.native import NativeDecoder
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.kernels.decoder_rows import Choice
from ltc_textgen.kernels.dispatch import report
from ltc_textgen.presets.recipes import load_preset
from ltc_textgen.runs import load_run

TEMPERATURE = 0.8


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
        engine = open_engine(model, Request([1], sampling, 0, 0), "torch")
        for _ in range(tokens):
            engine.draw()

    return call


def transformers_call(model: LiquidTimeConstantNetwork, tokens: int) -> Callable[[], Any]:
    ids = torch.ones(1, 1, dtype=torch.int64)
    options = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
    return lambda: model.generate(ids, max_new_tokens=tokens, **options)


def nanogpt_call(folder: Path, tokens: int) -> Callable[[], Any]:
    """One sample as by nanoGPT's sample.py --device=cpu --compile=False, without loading and printing."""
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
    """Time per token at the start and the end of one long text, and the growth of resident memory between."""
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


def cold_start(command: list[str], times: int) -> float:
    """Median run time in seconds of a program that generates one token."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def cold_starts(run: Path | None, exported: Path | None) -> dict[str, float]:
    """Cold starts of `ltc generate` and of the exported program, for those that are given."""
    found = {}
    if run:
        command = ["-m", "ltc_textgen", "generate", str(run), "-p", "a", "-n", "1", "--device", "cpu"]
        found["ltc generate"] = cold_start(command, 5)
    if exported:
        found["exported program"] = cold_start([str(exported / "generate.py"), "a", "--max-tokens", "1"], 5)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    quick = arguments.quick
    tokens, rounds, batches = (8, 2, (1, 3)) if quick else (400, 7, (1, 2, 4, 8, 16, 32, 64, 128, 256))
    model, threads = build(arguments.run), torch.get_num_threads()
    engines = {"native": NativeDecoder(model), "int8": NativeDecoder(model, int8=True)}
    calls = {f"{name}, batch 1": native_call(decoder, 1, tokens) for name, decoder in engines.items()}
    calls |= {"torch": reference_call(model, tokens), "transformers generate": transformers_call(model, tokens)}
    if arguments.nanogpt:
        calls["nanoGPT"] = nanogpt_call(arguments.nanogpt, tokens)
    log("batch 1 ...")
    speeds = {name: tokens / statistics.median(t) for name, t in race(calls, rounds, 0.0).items()}
    log("batches ...")
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
        log("a million tokens ...")
        result["million"] = {n: million(d, 3_000 if quick else 1_000_000) for n, d in engines.items()}
    if arguments.run or arguments.export:
        log("cold start ...")
        result["cold_start_seconds"] = cold_starts(arguments.run, arguments.export)
    return result


def roofline(size: int, threads: int, speeds: dict[str, float]) -> dict[str, float] | None:
    """Upper bounds by reading the weights and by multiply-adds, and the fraction of them that the decoder reaches."""
    found, small = limits(size, threads), limits(size // 4, threads)
    if found is None or small is None:
        return None
    ceiling, batched = found.bytes_per_second / size, found.multiplications_per_second / (size / 4)
    fractions = {f"batch{b}_share": speeds.get(f"native, batch {b}", 0.0) / batched for b in (64, 256)}
    return {
        **found._asdict(),
        "weight_bytes": size,
        "batch1_ceiling": ceiling,
        "batch1_share": speeds["native, batch 1"] / ceiling,
        "int8_batch1_ceiling": small.bytes_per_second / (size // 4),
        "int8_batch1_share": speeds["int8, batch 1"] * (size // 4) / small.bytes_per_second,
        "batched_ceiling": batched,
        "batch64_over_batch1_ceiling": batched / ceiling,
        **{name: value for name, value in fractions.items() if value},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments)
    for name, speed in result["tokens_per_second"].items():
        print(f"{name:<28}{speed:>12,.0f} tokens/s")
    for name, times in result["ratios"].items():
        print(f"{name:<36}{times:>6.1f}x")
    for topic in ("roofline", "cold_start_seconds"):
        for name, figure in (result.get(topic) or {}).items():
            print(f"{name:<36}{figure:>18,.3f}")
    for name, figures in result.get("million", {}).items():
        print(f"a million tokens, {name}:", ", ".join(f"{key} {value:,.3f}" for key, value in figures.items()))
    print_json(result)


if __name__ == "__main__":
    main()
