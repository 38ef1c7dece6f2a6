"""Make the model that comes with the package (`ltc generate demo`): characters of Shakespeare, 8 minutes on one core.

    python benchmarks/make_demo.py --data tinyshakespeare.txt

The text is tiny-shakespeare (1,115,394 characters of plays, in the public domain), as published with Karpathy's
char-rnn: https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt. Its SHA-256 is
checked. Training resumes in --run if it was stopped. What is kept is the run directory without checkpoints, with
weights rounded to float16, and a model card (`--out`, by default inside the package).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from ltc_textgen.cli import main as ltc
from ltc_textgen.evaluation import evaluate
from ltc_textgen.io.checked import read_json, sha256_file, write_json
from ltc_textgen.io.paths import DEMO
from ltc_textgen.runs import load_run, save_weights

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAME = "tinyshakespeare.txt"
RECIPE = ["--preset", "char-best", "--tokenizer", "char", "--set", "hidden_size=160", "--set", "dropout=0.1"]
TRAINING = [*RECIPE, "--time-budget", "470s", "--threads", "1", "--seed", "0"]
LARGEST = 3_000_000
"""Bytes of the whole directory."""

CARD = """# The demo model

A liquid time-constant network that continues plays, character by character. It comes with the package, so that
`ltc generate demo --prompt "ROMEO:"` works at once and offline. It is for trying things out and for looking inside
(`ltc analyse demo`); it knows nothing but the style of its text.

| | |
|---|---|
| Network | {layers} liquid blocks of width {width}, diagonal coupling, {parameters:,} parameters |
| Text | tiny-shakespeare: 1,115,394 characters of plays by William Shakespeare, in the public domain |
| SHA-256 of the text | `{sha}` |
| Training | {steps:,} steps on the first 90 %, {seconds:.0f} s on one CPU core |
| Validation loss | {loss:.4f} nats per character on the last 10 %, with carried state (float16 weights) |
| Licence | that of the package |
| Made by | `python benchmarks/make_demo.py --data {name}` |
"""


def keep(run_dir: Path, data: Path, out: Path) -> None:
    """Copy a run without its checkpoints, with weights in float16."""
    run = load_run(run_dir)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    run.tokenizer.save(out)
    config, training = read_json(run_dir / "config.json"), read_json(run_dir / "training.json")
    config.pop("auto_map", None)  # names a module that is not copied
    training["facts"]["corpus"] = training["run"]["data"]["data"] = NAME
    training["facts"]["result"]["out"] = "demo"
    write_json(out / "config.json", config)
    write_json(out / "training.json", training)
    for name in ("generation_config.json", "metrics.jsonl"):
        shutil.copyfile(run_dir / name, out / name)
    save_weights(out / "model.safetensors", run.network.half(), {"tokenizer": run.tokenizer.fingerprint})
    kept, text = load_run(out), data.read_text()
    scores = evaluate(kept.network, kept.tokenizer, [text[int(0.9 * len(text)) :]])
    settings, result = kept.network.settings, training["facts"]["result"]
    parameters = sum(p.numel() for p in kept.network.parameters())
    numbers = {"loss": scores.nll_per_token, "parameters": parameters, "sha": SHA256, "name": NAME}
    numbers |= {"layers": settings.num_layers, "width": settings.hidden_size}
    card = CARD.format(**numbers, steps=result["step"], seconds=result["seconds"])
    (out / "README.md").write_text(card)
    size = sum(path.stat().st_size for path in out.iterdir())
    if size > LARGEST:
        sys.exit(f"{out} has {size:,} bytes, at most {LARGEST:,} are wanted")
    print(json.dumps({"bytes": size, "nll_per_character": scores.nll_per_token, "parameters": parameters}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tiny-shakespeare")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run directory of the training")
    parser.add_argument("--out", type=Path, default=DEMO, help="directory to replace")
    options = parser.parse_args()
    if sha256_file(options.data) != SHA256:
        sys.exit(f"{options.data} is not the text that the model is made from: its SHA-256 differs")
    begun = (options.run / "training.json").is_file()
    settings = ["--resume"] if begun else ["--data", str(options.data), *TRAINING]
    code = ltc.run(["train", "--out", str(options.run), *settings])
    if code:
        sys.exit(code)
    keep(options.run, options.data, options.out)


if __name__ == "__main__":
    main()
