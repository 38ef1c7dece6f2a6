"""What is fuzzed: for each format, valid files to start from, a mutation of them, and the command that reads them.

A target is a function of a directory of its own with valid files and a `random.Random`; it mutates a file there and
returns the exit code of what reads it.
"""

import gzip
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mutators import (
    HOSTILE,
    dumped,
    mutate_bytes,
    mutate_json,
    mutate_json_bytes,
    mutate_lines,
    mutate_safetensors,
    mutate_toml,
)

STORY = "".join(f"On day {day} the sea was {'calm' if day % 3 else 'wild'}.\n" for day in range(60))
SMALL = ["hidden_size=8", "num_layers=1", "batch_size=2", "sequence_length=8"]
RECIPE = """[model]
hidden_size = 64
num_layers = 2
coupling = "diagonal"
solver = "semi_implicit"
dropout = 0.1

[train]
max_steps = 100
batch_size = 8
learning_rate = 0.005
weight_decay = 0.1
optimizer = "adamw"

[data]
data = "missing.txt"
tokenizer = "char"
valid_fraction = 0.1
"""

Target = Callable[[random.Random, Path], int]


def build(base: Path, names: Collection[str]) -> None:
    """Make the valid files of some formats: a trained run, its state, its export, a recipe and corpora."""
    base.mkdir(parents=True, exist_ok=True)
    (base / "story.txt").write_text(STORY)
    (base / "recipe.toml").write_text(RECIPE)
    rows = [
        {"text": line, "n": number, "more": [None, {"a": 1.5}]} for number, line in enumerate(STORY.splitlines()[:12])
    ]
    (base / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (base / "rows.csv").write_text('n,text\n1,"a line, quoted"\n2,"another ""one"""\n3,last\n')
    (base / "story.txt.gz").write_bytes(gzip.compress(STORY.encode()))
    (base / "rows.jsonl.gz").write_bytes(gzip.compress((base / "rows.jsonl").read_bytes()))
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": [row["text"] for row in rows]}), base / "rows.parquet")
    if set(names) <= {"recipe", "corpus"}:
        return
    run = base / "run"
    options = [word for value in SMALL for word in ("--set", value)]
    command("train", "--data", base / "story.txt", "--max-steps", 3, "--out", run, "--threads", 1, *options)
    command("generate", run, "--prompt", "On day", "--save-state", base / "text.state", "-n", 1, "--threads", 1)
    if "export" in names:
        command("export", run, "--out", base / "export", "--threads", 1)
    plain = (
        base / "plain"
    )  # without fingerprints in the header: what other tools save, and what reaches the checks behind
    shutil.copytree(run, plain, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))
    from safetensors.torch import load_file, save_file

    save_file(load_file(run / "model.safetensors"), plain / "model.safetensors", {"format": "pt"})


def command(*arguments: object) -> None:
    """Run `ltc` in a process of its own."""
    line = [sys.executable, "-m", "ltc_textgen", *map(str, arguments)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ltc(*arguments: object) -> int:
    """Run `ltc` in this process; returns its exit code."""
    from ltc_textgen.cli import main

    return main.run([str(argument) for argument in arguments])


def rewrite(path: Path, mutate: Callable[[random.Random, bytes], bytes], chance: random.Random) -> None:
    """Mutate a file, which may be a hard link, in place of the old one."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(mutate(chance, content))


def generate(run: Path, *options: object) -> int:
    """Generate two tokens with a run."""
    return ltc("generate", run, "--prompt", "On day 7", "-n", 2, "--seed", 1, "--threads", 1, *options)


def of_run(name: str, mutate: Callable[[random.Random, bytes], bytes], run: str = "plain") -> Target:
    """A target for a file of a run directory."""

    def target(chance: random.Random, directory: Path) -> int:
        rewrite(directory / run / name, mutate, chance)
        return generate(directory / run)

    return target


def sealed_weights(chance: random.Random, directory: Path) -> int:
    """Weights whose checksum was made again after the mutation."""
    from safetensors.torch import load, save

    from ltc_textgen.io.hashing import digest

    path = directory / "run" / "model.safetensors"
    rewrite(path, mutate_safetensors, chance)
    try:
        tensors = load(path.read_bytes())
        path.write_bytes(save(tensors, {"format": "pt", "sha256": digest(tensors)}))
    except Exception:
        pass  # the library that reads it rejects it; so must we
    return generate(directory / "run")


def state(chance: random.Random, directory: Path) -> int:
    """A state that --save-state has written."""
    rewrite(directory / "text.state", mutate_safetensors, chance)
    return generate(directory / "run", "--state", directory / "text.state")


def checkpoint(chance: random.Random, directory: Path) -> int:
    """A file of a checkpoint, the checksums made again after the mutation, and training resumed from it."""
    run = directory / "run"
    (path,) = (run / "checkpoints").iterdir()
    name = chance.choice(sorted(file.name for file in path.iterdir()))
    mutate = mutate_safetensors if name.endswith(".safetensors") else mutate_json_bytes
    rewrite(path / name, mutate, chance)
    if name != "manifest.json" and chance.random() < 0.9:
        reseal(path)
    return ltc("train", "--resume", "--out", run, "--data", directory / "story.txt", "--max-steps", 3, "--threads", 1)


def reseal(checkpoint: Path) -> None:
    """Make the checksums of a checkpoint's manifest again."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256", None)
    manifest["files"] = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def metrics(chance: random.Random, directory: Path) -> int:
    """The loss curve."""
    rewrite(directory / "run" / "metrics.jsonl", mutate_lines, chance)
    (directory / "run" / "model.safetensors").unlink()  # only the curve is drawn then
    return ltc("inspect", directory / "run", *chance.choice(((), ("--json",))))


def recipe(chance: random.Random, directory: Path) -> int:
    """A recipe, of a corpus that is not there."""
    rewrite(directory / "recipe.toml", mutate_toml, chance)
    return ltc("train", "--config", directory / "recipe.toml", "--data", directory / "none", "--out", directory / "out")


def corpus(chance: random.Random, directory: Path) -> int:
    """Corpora of every kind, read to the end as training reads them."""
    from ltc_textgen.config import DataConfig
    from ltc_textgen.data.corpora import load_corpus
    from ltc_textgen.errors import LTCError

    name = chance.choice(("story.txt", "rows.jsonl", "rows.csv", "story.txt.gz", "rows.jsonl.gz", "rows.parquet"))
    path = directory / name
    if name.endswith(".gz") and chance.random() < 0.7:
        inner = mutate_lines if "jsonl" in name else mutate_bytes
        rewrite(path, lambda chance, content: gzip.compress(inner(chance, gzip.decompress(content)), 1), chance)
    else:
        rewrite(path, mutate_lines if name.endswith("jsonl") else mutate_bytes, chance)
    errors = chance.choice(("strict", "replace", "ignore"))
    try:
        read = load_corpus(DataConfig.parse({"data": str(path), "encoding_errors": errors}))
        for text in (*read.train(), *read.valid()):
            text.encode()
    except LTCError as error:
        return error.exit_code
    return 0


def export(chance: random.Random, directory: Path) -> int:
    """A file of an export, checksums made again after the mutation, and text generated from it."""
    from ltc_textgen.export.host import generate as program
    from ltc_textgen.export.host.network import description_digest

    out = directory / "export"
    name = chance.choice(("export.json", "decoding.json", "tokenizer.json", "model.onnx", "description"))
    if name == "description":
        mutate_description(chance, out / "model.onnx")
    else:
        rewrite(out / name, mutate_bytes if name == "model.onnx" else mutate_json_bytes, chance)
    if name != "export.json" and chance.random() < 0.95:
        about = json.loads((out / "export.json").read_text())
        about.pop("sha256")
        about["files"] = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in about["files"]}
        (out / "export.json").write_text(json.dumps(about | {"sha256": description_digest(about)}))
    return program.main(["On day 7", "--directory", str(out), "-n", "3", "--seed", "1"])


def mutate_description(chance: random.Random, path: Path) -> None:
    """Change the JSON in a graph's metadata."""
    import onnx

    model = onnx.load(path)
    entry = model.metadata_props[0]
    document = mutate_json(chance, json.loads(entry.value))
    entry.value = dumped(document).decode()
    path.write_bytes(model.SerializeToString())


OPTIONS: dict[str, str] = {
    "generate": "max-tokens temperature top-k top-p min-p repetition-penalty seed stop num-samples engine state prompt "
    "prompt-file threads device",
    "train": "set max-steps time-budget config preset tokenizer data threads device",
    "eval": "data threads device",
    "export": "format int8-limit threads data",
    "inspect": "text",
}
"""Options that take a value, by command."""

SETTINGS = [
    "hidden_size",
    "max_steps",
    "model.x",
    "learning_rate",
    "data.data",
    "solver",
    "steps",
    "x",
    "",
    "=",
    "wiring",
]


def options(chance: random.Random, directory: Path) -> int:
    """Values of options on the command line; where they are right, nothing expensive follows."""
    name = chance.choice(list(OPTIONS))
    values: Any = [str(value) for value in HOSTILE] + ["9" * 5000, "[" * 5000, "1h", "-", "~", "a=b", "=", "1e-46"]
    words: list[str] = []
    for _ in range(chance.choice((1, 1, 2))):
        option = f"--{chance.choice(OPTIONS[name].split())}"
        value = chance.choice(values)
        if option == "--set":
            value = f"{chance.choice(SETTINGS)}={value}"
        words += [
            f"{option}={value}".encode("utf-8", "surrogateescape" if "\ud800" not in value else "replace").decode()
        ]
    if name == "generate":
        small = ["-n", "2"] if "--max-tokens" not in " ".join(words) else ["--prompt-file", str(directory / "none")]
        return ltc(name, directory / "run", *words, *small)
    if name == "train":
        return ltc(name, *words, "--data", directory / "none", "--out", directory / "out")
    return ltc(name, directory / "none", *words)


TARGETS: dict[str, Target] = {
    "config": of_run("config.json", mutate_json_bytes),
    "generation-config": of_run("generation_config.json", mutate_json_bytes),
    "training": of_run("training.json", mutate_json_bytes, "run"),
    "tokenizer": of_run("tokenizer.json", mutate_json_bytes),
    "tokenizer-config": of_run("tokenizer_config.json", mutate_json_bytes),
    "weights": of_run("model.safetensors", mutate_safetensors, "run"),
    "sealed-weights": sealed_weights,
    "state": state,
    "checkpoint": checkpoint,
    "metrics": metrics,
    "recipe": recipe,
    "corpus": corpus,
    "export": export,
    "options": options,
}

WEIGHTS = {"recipe": 3.0, "corpus": 3.0, "options": 2.0, "checkpoint": 0.1, "export": 0.5, "metrics": 1.0}
"""Inputs of a format relative to the others: slow ones get fewer."""

NEEDS: dict[str, tuple[str, ...]] = {
    "state": ("run", "text.state"), "checkpoint": ("run", "story.txt"), "metrics": ("run",), "recipe": ("recipe.toml",),
    "corpus": ("story.txt", "rows.jsonl", "rows.csv", "story.txt.gz", "rows.jsonl.gz", "rows.parquet"),
    "export": ("export",), "options": ("run",), "training": ("run",), "weights": ("run",), "sealed-weights": ("run",),
}  # fmt: skip
"""Files of `build` that a target changes; "plain" if not named here."""
