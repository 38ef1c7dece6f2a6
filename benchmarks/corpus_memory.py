"""Resident memory of training on a corpus larger than memory.

    python benchmarks/corpus_memory.py                     2 GB of random words, byte tokens, 50 steps; 7 GB of disk
    python benchmarks/corpus_memory.py --megabytes 50      the same on 50 MB

Generates a text, trains on it with `ltc train` and samples the resident memory of all its processes 20 times a second;
then the same with a text of one megabyte. The difference is the memory cost of the corpus size. Prints a table; the
last line of stdout is one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lib.report import print_json

MODEL = ["hidden_size=128", "block=liquid", "coupling=diagonal", "num_layers=2", "steps=1", "step_size=1.0"]


def write_words(path: Path, size: int, seed: int = 0) -> None:
    """Write a text of about `size` bytes: lines of words with Zipf-distributed frequencies."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    words = np.array(
        ["".join(draw.choice(letters[: 4 + n % 22], size=2 + n % 9)) + (" " if n % 12 else "\n") for n in range(20_000)]
    )
    with path.open("w", encoding="utf-8") as file:
        written = 0
        while written < size:
            ranks = np.minimum(draw.zipf(1.2, 200_000) - 1, len(words) - 1)
            text = "".join(words[ranks].tolist())[: size - written]
            written += file.write(text)


def watch(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; returns the peak resident memory of it and all its children in bytes, its output and its time."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as log:  # pipes could fill up and block
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=log)
        found = _follow(process)
        for name, file in (("result", output), ("log", log)):
            file.seek(0)
            found[name] = file.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{found['log']}")
    return found


def _follow(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    start = time.perf_counter()
    root = psutil.Process(process.pid)
    peak, anonymous, most = 0, 0, 0
    while process.poll() is None:
        total = private = count = 0
        for each in [root, *_children(root)]:
            try:
                memory = each.memory_info()
            except psutil.Error:
                continue
            total, private, count = total + memory.rss, private + memory.rss - memory.shared, count + 1
        peak, anonymous, most = max(peak, total), max(anonymous, private), max(most, count)
        time.sleep(0.05)
    return {"peak": peak, "private": anonymous, "processes": most, "seconds": time.perf_counter() - start}


def train(text: Path, cache: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    valid = text.with_name("valid.txt")
    arguments = ["--data", str(text), "--valid", str(valid), "--out", str(out), "--tokenizer", options.tokenizer]
    arguments += ["--max-steps", str(options.steps), "--json", "--config", str(_recipe(out.parent))]
    command = [sys.executable, "-m", "ltc_textgen", "train", *arguments]
    found = watch(command, os.environ | {"LTC_CACHE": str(cache)})
    events = [json.loads(line) for line in found.pop("log").splitlines()]
    found["result"] = json.loads(found["result"])
    made = [event["text"] for event in events if event["event"] == "note" and "made in" in event["text"]]
    return found | {"made": made[-1] if made else ""}


def _recipe(folder: Path) -> Path:
    path = folder / "recipe.toml"
    lines = [f'{key} = "{value}"' if value.isalpha() else f"{key} = {value}" for key, value in _pairs()]
    path.write_text("[model]\n" + "\n".join(lines) + "\n[train]\nsample_tokens = 0\n")
    return path


def _pairs() -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (setting.partition("=") for setting in MODEL)]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak memory with a large and with a small text."""
    small, large = folder / "small.txt", folder / "large.txt"
    write_words(small, 1_000_000)
    write_words(large, options.megabytes * 1_000_000)
    write_words(folder / "valid.txt", 100_000, seed=1)
    rows = {
        "small": train(small, folder / "cache", folder / "small", options),
        "large": train(large, folder / "cache", folder / "large", options),
        "large, cached": train(large, folder / "cache", folder / "again", options),
    }
    return {
        "megabytes": options.megabytes,
        "tokenizer": options.tokenizer,
        "beyond": rows["large"]["peak"] - rows["small"]["peak"],
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the text")
    parser.add_argument("--tokenizer", default="byte", help="byte, char or wordpiece")
    parser.add_argument("--steps", type=int, default=50, help="steps of training")
    parser.add_argument("--folder", type=Path, help="directory for the temporary text and tokens")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = compare(options, Path(folder))
    print(f"{'text':<16}{'peak RSS':>12}{'private':>12}{'processes':>11}{'seconds':>9}")
    for name, row in found["rows"].items():
        print(
            f"{name:<16}{row['peak'] / 1e6:>9,.0f} MB{row['private'] / 1e6:>9,.0f} MB"
            f"{row['processes']:>11}{row['seconds']:>9.1f}"
        )
        print(f"  {row['made']}")
    print(f"{options.megabytes:,} MB of text cost {found['beyond'] / 1e6:,.0f} MB of resident memory")
    print_json(found)


if __name__ == "__main__":
    main()
