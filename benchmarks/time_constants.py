"""Do liquid time constants mean anything on text? Networks trained with several seeds, taken apart on held-out text.

    python benchmarks/time_constants.py --data tinyshakespeare.txt --seeds 0,1,2 --seconds 60 --folder runs/study

Trains `char-fast` once for each seed and for each way of time (liquid, and frozen: `adaptive=false`), for --seconds
each, and analyses the end of the text, which is held out. For each way it prints, as mean and deviation over seeds:

* the law of the neurons' time constants: log likelihood of an inverse gamma less that of a log-normal, in nats per
  neuron (above zero where the inverse gamma of Mahto et al. 2021 fits better);
* how far a time constant moves: the median interquartile range of log tau;
* rank correlation of time constants with the effective timescales of Chien et al. 2021, mean over layers;
* the best neuron for the position in the line: AUC on the half that did not choose it, the best of shifted labels, and
  what the loss becomes without it, late and early in the line;
* the loss without each quarter of the neurons by time constant, shortest first.

Prints a Markdown table; the last line of stdout is one JSON document. Finished runs are not trained again.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from lib.report import Results, integers, log, markdown, plus_minus, print_json
from ltc_textgen.analysis import trace
from ltc_textgen.analysis.report import Size, analyse
from ltc_textgen.cli import main as ltc
from ltc_textgen.cli import process_env
from ltc_textgen.runs import load_run

KINDS = {"liquid": [], "frozen": ["--set", "adaptive=false"]}
LABEL = "line_position"
SIZE = Size(searched=10_000, intervened=4_000, predicted=64)


def trained(kind: str, seed: int, o: argparse.Namespace) -> Path:
    """The run of a seed, trained if it is not there."""
    out = o.folder / f"{o.data.stem}-{kind}-{seed}"
    if not (out / "model.safetensors").exists():
        settings = ["--preset", "char-fast", "--tokenizer", "char", *KINDS[kind], "--time-budget", f"{o.seconds}s"]
        more = ["--seed", str(seed), "--threads", str(o.threads)]
        if ltc.run(["train", "--data", str(o.data), "--out", str(out), *settings, *more]):
            sys.exit(f"training {out} failed")
    return out


def study(kind: str, seed: int, o: argparse.Namespace) -> dict[str, Any]:
    """The figures of one network."""
    run = load_run(trained(kind, seed, o))
    text = o.data.read_text(encoding="utf-8")
    held_out = text[int(0.9 * len(text)) :]
    ids = run.tokenizer.encode(held_out)[: o.tokens]
    report = analyse(run.network, trace(run.network, torch.tensor([ids]), run.tokenizer), [LABEL], SIZE)
    lives, found = report["half_lives"], report["correlation"][LABEL]
    best = report["neurons"][0]
    correlations = [layer["correlation_with_tau"] for layer in report["effective_timescale"]["layers"]]
    return {
        "kind": kind,
        "seed": seed,
        "data": o.data.stem,
        "loss": report["loss"],
        "inverse gamma less log-normal": lives["inverse_gamma"]["log_likelihood"]
        - lives["log_normal"]["log_likelihood"],
        "range of log tau": statistics.mean(layer["spread_of_log_tau"] for layer in lives["layers"]),
        "correlation of tau and effective timescale": statistics.mean(correlations),
        "AUC of the line neuron": found["auc"][0],
        "best AUC of shifted labels": found["baseline"]["highest"],
        "half-life of the line neuron": best["half_life"],
        "loss without it": best["intervention"]["all"]["change"],
        "late in the line": best["intervention"]["with_label"],
        "early in the line": best["intervention"]["without_label"],
        **{f"loss without quarter {number}": row["change"] for number, row in enumerate(report["routing"], start=1)},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each figure, one column for each way of time."""
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    names = [name for name in rows[0] if name not in ("kind", "seed", "data")] if rows else []
    lines = [
        [name, *(plus_minus(row[name] for row in rows if row["kind"] == kind) for kind in kinds)] for name in names
    ]
    return markdown([f"{len({row['seed'] for row in rows})} seeds", *kinds], lines)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="text of lines, such as tiny-shakespeare")
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--seconds", type=int, default=80, help="of training, each")
    parser.add_argument("--tokens", type=int, default=10_000, help="of held-out text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="where the runs are kept")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    process_env.tune()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = Results(options.folder / f"{options.data.stem}.json")
    for seed in options.seeds:
        for kind in options.kinds:
            key = f"{options.seconds} {kind} {seed}"
            if key not in results:
                results.add(key, study(kind, seed, options))
                log(f"{key}: {results.rows[key]}")
    rows = list(results.rows.values())
    print(table(rows))
    print_json({"command": " ".join(sys.argv[1:]), "results": rows})


if __name__ == "__main__":
    main()
