"""Our matrix product against MKL and oneDNN, which torch ships, in the shapes of the presets' layers.

The contenders are timed in turn, so that a busy machine slows all of them; a figure is the median over rounds of the
ratio within a round. Run on an idle machine:

    python benchmarks/matmul.py
"""

import torch

from ltc_textgen.benchmarking import race, ratio, table
from ltc_textgen.kernels import dispatch, library
from ltc_textgen.kernels.matmul import product

SHAPES = [(768, 128, 384), (768, 384, 128), (768, 256, 1536), (768, 512, 8192), (2048, 512, 1024), (128, 768, 256)]
"""Rows, depth and columns of A B."""


def main() -> None:
    """Print the table."""
    print(f"{library.instruction_set()}, {torch.get_num_threads()} threads, ours is used: {dispatch.PRODUCT}")
    rows: list[dict[str, object]] = []
    for rows_of_a, depth, columns in SHAPES:
        a, weight = torch.randn(rows_of_a, depth), torch.randn(columns, depth)
        bias, b = torch.randn(columns), weight.t()
        calls = {
            "ours": lambda a=a, b=b, bias=bias: product(a, b, bias),
            "mkl": lambda a=a, b=b, bias=bias: torch.addmm(bias, a, b),
            "onednn": lambda a=a, weight=weight, bias=bias: torch.ops.mkldnn._linear_pointwise(
                a, weight, bias, "none", [], ""
            ),
        }
        taken = race(calls, rounds=9, seconds=0.05)
        work = 2e-9 * rows_of_a * depth * columns
        rows.append(
            {"shape": f"{rows_of_a} x {depth} x {columns}"}
            | {f"{name} GFLOP/s": work / min(seconds) for name, seconds in taken.items()}
            | {f"ours over {name}": ratio(taken[name], taken["ours"]) for name in ("mkl", "onednn")}
        )
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
