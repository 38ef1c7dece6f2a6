"""A trained run compared with a text compressor: the network, an n-gram memory of its training text, both, and PPMd.

    ltc train --data book.txt --tokenizer char --preset char-fast --out runs/book
    python benchmarks/compressors.py runs/book --data book.txt

Everything is measured on the part of the text that the run held out. Static figures know the training text alone;
adapting ones learn from each token after it was scored. The two are different questions and stand in different columns:

* network, memory, mixture: `ltc_textgen.evaluation.memory_scores`. The weights of the mixture are fitted on the
  first part of the training text, which a run with a memory has held back from its network.
* PPMd (pip install pyppmd): bits of the training text with the held-out text behind it, less bits of the training text.
  Static: the held-out text in chunks of `--piece` characters, each after the training text alone, so it hardly adapts.

Prints nats per character and per token, and one JSON document as the last line.
"""

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lib.compressor import ppmd
from lib.report import log, machine, markdown, print_json
from ltc_textgen.config import DataConfig
from ltc_textgen.data.corpora import load_corpus
from ltc_textgen.evaluation import read_text
from ltc_textgen.evaluation.memory_scores import build_memory, calibration_tokens, fit_mixture, score_with_memory
from ltc_textgen.runs import load_run


def ours(path: Path, data: str | None, orders: list[int]) -> tuple[dict[str, Any], str, str]:
    """Nats per character of network, memory and mixture for each order, and the two parts of the text."""
    run = load_run(path)
    settings = run.config.data if run.config else DataConfig()
    corpus = load_corpus(settings.model_copy(update={"data": data} if data else {}))
    train, valid = ("\n".join(corpus.documents(part)) for part in ("train", "valid"))
    first, rest = (read_text(run.model, run.tokenizer, [text]).tokens for text in (train, valid))
    rows: dict[str, Any] = {}
    for order in orders:
        for adapting in (False, True):
            start = time.perf_counter()
            held_back = calibration_tokens(len(first))
            memory = build_memory(first[held_back:], run.tokenizer.vocab_size, None, order)
            built = time.perf_counter() - start
            mixture = fit_mixture(run.model, memory, first[:held_back])
            memory.learn(first[:held_back])
            scores = score_with_memory(run.model, rest, mixture, adapting=adapting)
            characters = len(valid)
            log(f"order {order}, {'adapting' if adapting else 'static'}: {scores.mixed / characters:.4f}")
            rows[f"{order} {'adapting' if adapting else 'static'}"] = {
                **{name: getattr(scores, name) / characters for name in ("network", "memory", "mixed")},
                **{
                    "tokens": scores.tokens,
                    "seconds_to_build": built,
                    "entries": memory.entries,
                    "file_bytes": memory.file_size,
                },
            }
    return rows, train, valid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--data", help="the run's corpus, if it has moved")
    parser.add_argument("--orders", default="6,8", help="orders of the memory and of PPMd")
    parser.add_argument("--piece", type=int, default=2000, help="characters of a chunk in PPMd's static figure")
    given = parser.parse_args()
    orders = [int(order) for order in given.orders.split(",")]
    rows, train, valid = ours(given.run, given.data, orders)
    compressed = {}
    if find_spec("pyppmd"):
        compressed = {order: ppmd(train, valid, order, given.piece) for order in orders}
    else:
        log("PPMd is left out: pip install pyppmd")
    lines = [
        [f"PPMd, order {order}", f"{row['static']:.4f}", f"{row['adapting']:.4f}"] for order, row in compressed.items()
    ]
    static, adapting = rows[f"{orders[0]} static"], rows[f"{orders[0]} adapting"]
    lines.append(["network alone", f"{static['network']:.4f}", f"({adapting['network']:.4f}, all tokens)"])
    for name, label in (("memory", "memory alone"), ("mixed", "network and memory")):
        for order in orders:
            pair = rows[f"{order} static"][name], rows[f"{order} adapting"][name]
            lines.append([f"{label}, order {order}", *(f"{value:.4f}" for value in pair)])
    print(markdown(["nats per character", "static", "adapting"], lines))
    print_json({"machine": machine(), "run": given.run.name, "memory": rows, "ppmd": compressed})


if __name__ == "__main__":
    main()
