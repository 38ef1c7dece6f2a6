"""Speed, memory and accuracy of the liquid layers compared with nn.LSTM, nn.GRU, minGRU and ncps.

    python benchmarks/speed.py                             everything: about 15 minutes on 2 cores
    python benchmarks/speed.py --only bars                 only the project's bars
    python benchmarks/speed.py --plot cost.svg             also plot cost against length, width and sub-steps
    python benchmarks/speed.py --quick                     a smoke test; its figures mean nothing

Prints tables; the last line of stdout is one JSON document. Contenders are timed in turn within each round; figures are
medians over rounds (see `ltc_textgen.benchmarking`).
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.bars import BARS, Sizes, against_ncps
from lib.report import log, machine, print_json
from ltc_textgen.benchmarking import (
    Contender,
    LayerSpeed,
    inputs,
    liquid_layer,
    liquid_layers,
    measure,
    peers,
    speed_rows,
    table,
    threads,
)
from ltc_textgen.cli import process_env
from ltc_textgen.config import Solver

SPEEDS = ("forward_tokens_per_second", "train_tokens_per_second", "activation_bytes_per_token")


def compiled(coupling: str, sizes: Sizes) -> Contender | None:
    """The reference with torch.compile on its token step and a Python loop over tokens; None if it cannot compile."""
    layer = liquid_layer(sizes.width, steps=sizes.steps, coupling=coupling)
    layer.step = torch.compile(layer.step)  # type: ignore[method-assign]
    name = f"{coupling}, {sizes.steps} steps, torch.compile"
    c = Contender(name, layer, inputs(sizes.batch, sizes.tokens, sizes.width), "reference")
    start = time.perf_counter()
    try:
        c.forward()
        c.train()
    except Exception as error:  # no C++ compiler, or an unsupported release of torch
        log(f"{name}: skipped, {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None
    log(f"{name}: {time.perf_counter() - start:.0f} s to compile")
    return c


def layers(sizes: Sizes, with_compile: bool) -> list[dict[str, Any]]:
    """All layers and baselines at one size."""
    torch.manual_seed(0)
    shape = (sizes.batch, sizes.tokens, sizes.width, sizes.steps)
    u = inputs(*shape[:3])
    made = [*peers(*shape), *liquid_layers(*shape)]
    for coupling in ("diagonal", "full"):
        layer = liquid_layer(sizes.width, steps=sizes.steps, coupling=coupling)
        made.append(Contender(f"{coupling}, {sizes.steps} steps, PyTorch", layer, u, "reference"))
        made += [c for c in [compiled(coupling, sizes)] if c] if with_compile else []
    newton = liquid_layer(sizes.width, steps=sizes.steps, coupling="diagonal")
    made.append(Contender(f"diagonal, {sizes.steps} steps, Newton over time", newton, u, "parallel"))
    return speed_rows(measure(made, sizes.rounds, sizes.seconds))


def sweeps(sizes: Sizes) -> list[dict[str, Any]]:
    """Varies one axis at a time around the central size."""
    cores, quick = os.cpu_count() or 1, sizes.width < 64
    axes: dict[str, Sequence[Any]] = {
        "batch": (1, 2) if quick else (1, 8, 32, 128),
        "tokens": (4, 8) if quick else (16, 64, 256, 1024, 4096),
        "width": (8, 16) if quick else (64, 128, 256, 512, 1024),
        "steps": (1, 2) if quick else (1, 2, 6, 12),
        "solver": list(Solver),
        "threads": sorted({1, min(2, cores), cores}),
    }
    rows = []
    for axis, values in axes.items():
        for value in values:
            log(f"sweep: {axis} = {value}")
            with threads(value if axis == "threads" else None):
                for speed in point(sizes, axis, value):
                    rows.append({"axis": axis, "value": str(value), **speed_rows([speed])[0]})
    return rows


def point(sizes: Sizes, axis: str, value: Any) -> list[LayerSpeed]:
    at = {"batch": sizes.batch, "tokens": sizes.tokens, "width": sizes.width, "steps": sizes.steps}
    at |= {axis: value} if axis in at else {}
    if at["tokens"] > 1024:  # limits memory on small machines
        at["batch"] = min(at["batch"], 8)
    solver = value if axis == "solver" else Solver.semi_implicit
    u, width = inputs(at["batch"], at["tokens"], at["width"]), at["width"]
    made = [
        Contender(coupling, liquid_layer(width, steps=at["steps"], coupling=coupling, solver=solver), u)
        for coupling in ("diagonal", "full")
    ]
    if axis not in {"steps", "solver"}:
        made.append(Contender("nn.LSTM", nn.LSTM(width, width, batch_first=True), u))
    return measure(made, max(2, sizes.rounds // 2), sizes.seconds / 2)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot training time per token against length, width and sub-steps, one panel each."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    titles = {"tokens": "tokens of a sequence", "width": "neurons", "steps": "sub-steps of a token"}
    for panel, (axis, title) in zip(panels, titles.items(), strict=True):
        for name in ("nn.LSTM", "full", "diagonal"):
            points = [r for r in rows if r["axis"] == axis and r["name"] == name]
            cost = [1e6 / r["train_tokens_per_second"] for r in points]
            panel.plot([int(r["value"]) for r in points], cost, marker="o", label=name)
        panel.set(xscale="log", yscale="log", xlabel=title)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("training, µs per token")
    panels[0].legend()
    figure.savefig(path)
    pyplot.close(figure)


def show(title: str, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    print(f"\n{title}\n{table(rows, columns)}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("bars", "layers", "sweeps"), action="append", help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, as a smoke test")
    parser.add_argument("--rounds", type=int, help="timings per contender")
    parser.add_argument("--seconds", type=float, help="seconds per timing")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile (half a minute)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the sweeps (needs the extra 'plot')")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    process_env.tune()
    base = Sizes.quick() if options.quick else Sizes()
    chosen = {name: value for name in ("rounds", "seconds") if (value := getattr(options, name))}
    sizes = Sizes(**{**vars(base), **chosen})
    if options.threads:
        torch.set_num_threads(options.threads)
    parts = options.only or ["bars", "layers", "sweeps"]
    result: dict[str, Any] = {"command": " ".join(sys.argv[1:]), "machine": machine(), "sizes": vars(sizes)}
    start = time.perf_counter()
    if "bars" in parts:
        result["bars"] = bars(sizes)
        show("Bars", result["bars"], ("name", "measured", "required", "met"))
    if "layers" in parts:
        result["layers"] = layers(sizes, not (options.no_compile or options.quick))
        show("Layers", result["layers"], ("name", "batch_size", "tokens", "width", "parameters", *SPEEDS))
    if "sweeps" in parts:
        result["sweeps"] = sweeps(sizes)
        show("Sweeps", result["sweeps"], ("axis", "value", "name", "batch_size", *SPEEDS))
        if options.plot:
            plot(result["sweeps"], options.plot)
    result["seconds"] = round(time.perf_counter() - start, 1)
    print_json(result)


def bars(sizes: Sizes) -> list[dict[str, Any]]:
    rows = []
    for part in BARS:
        if part is against_ncps and importlib.util.find_spec("ncps") is None:
            log("bars: against_ncps skipped, ncps is not installed (the extra 'bench')")
            continue
        log(f"bars: {part.__name__}")
        torch.manual_seed(0)
        rows += [bar.row() for bar in part(sizes)]
    return rows


if __name__ == "__main__":
    main()
