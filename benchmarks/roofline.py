"""Training speed of a preset as a fraction of its roofline: the time of its matrix products alone.

The forward and backward products of one step are timed alone, with the faster of the available implementations, before
and after a training run. The roofline is the speed at which everything else in a step (recurrence, norms, loss,
optimizer, batches) would cost nothing.

    python benchmarks/roofline.py --preset char-fast --data tinyshakespeare.txt --tokenizer char --steps 300
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from lib.report import print_json
from ltc_textgen.cli import process_env
from ltc_textgen.config import ModelConfig, RunConfig
from ltc_textgen.kernels.dispatch import PRODUCT
from ltc_textgen.kernels.matmul import product
from ltc_textgen.presets import recipes
from ltc_textgen.training.loop import train
from ltc_textgen.training.report import Reporter


def shapes(model: ModelConfig, tokens: int) -> list[tuple[int, int, int]]:
    """(rows, depth, columns) of the products of one training step: liquid blocks and a full output layer."""
    D, N = model.hidden_size, model.neurons
    layers = [(D, 2 * N), (D, N), (N, D)] * model.num_layers + [(D, model.vocabulary)]
    forward = [(tokens, down, across) for down, across in layers]
    return forward + [(tokens, n, k) for _, k, n in forward] + [(k, tokens, n) for _, k, n in forward]


def times(a: torch.Tensor, b: torch.Tensor, half: bool) -> torch.Tensor:
    if half:
        return a.bfloat16() @ b.bfloat16()
    return product(a, b) if PRODUCT else a @ b


def seconds_of_products(model: ModelConfig, tokens: int, half: bool, rounds: int) -> float:
    """Median time of all products of a step."""
    pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in shapes(model, tokens)]
    found = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        for a, b in pairs:
            times(a, b, half)
        found.append(time.perf_counter() - start)
    return sorted(found[3:])[rounds // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="char-fast")
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", default="char")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--set", action="append", default=[], help="key=value, as for ltc train")
    options = parser.parse_args()
    process_env.tune()
    given = {"data": {"data": options.data, "tokenizer": options.tokenizer}}
    length = {"train": {"max_steps": options.steps, "eval_steps": 10 * options.steps, "sample_tokens": 0}}
    recipe = recipes.merge(recipes.load_preset(options.preset), given, length, recipes.assignments(options.set))
    run = RunConfig.parse(recipe)
    with tempfile.TemporaryDirectory() as folder:
        result = train(run, Path(folder) / "warm", reporter=Reporter())
        settings = run.model_config_for(json.loads((result.out / "config.json").read_text())["input_size"])
        tokens, half = run.train.batch_size * run.train.sequence_length, run.train.mixed_precision == "bf16"
        before = seconds_of_products(settings, tokens, half, options.rounds)
        result = train(run, Path(folder) / "run", reporter=Reporter())
        after = seconds_of_products(settings, tokens, half, options.rounds)
    work = sum(2 * m * k * n for m, k, n in shapes(settings, tokens))
    seconds = (before + after) / 2
    figures = {
        "preset": options.preset,
        "tokens_per_second": result.tokens_per_second,
        "step_ms": 1e3 * tokens / result.tokens_per_second,
        "products_ms": 1e3 * seconds,
        "products_gflops": work / seconds / 1e9,
        "share_of_roofline": seconds * result.tokens_per_second / tokens,
    }
    for name, value in figures.items():
        print(f"{name:20} {value if isinstance(value, str) else format(value, ',.4g')}")
    print_json(figures)


if __name__ == "__main__":
    main()
