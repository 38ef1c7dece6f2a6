"""Cost of checkpoints: time and size of one, and the time to the first step of a new and a resumed run.

    python benchmarks/checkpoints.py                   a network of preset char-best's size (2.2 M parameters)
    python benchmarks/checkpoints.py --hidden 1024     a larger one

Trains a few steps on random letters, writes checkpoints as training does (synced to disk), then starts new and resumed
runs in separate processes and times start-up (imports and tokenisation) and the first step. The last line of stdout is
one JSON document.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib.report import print_json

FIRST_STEP = """
import sys, time
from pathlib import Path
from ltc_textgen.config import RunConfig
from ltc_textgen.data.token_cache import prepare
from ltc_textgen.training import loop
from ltc_textgen.training.report import Reporter

class FirstStep(Reporter):
    def step(self, pace):
        if not times[2:]:
            times.append(time.time())

run = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
data = prepare(run.data)
times = [float(sys.argv[3]), time.time()]
loop.train(run, Path(sys.argv[2]), resume=sys.argv[4] == "resume", reporter=FirstStep(), data=data)
print(times[1] - times[0], times[2] - times[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltc-checkpoints-") as folder:
        os.environ["LTC_CACHE"] = str(Path(folder) / "cache")
        result = measure(Path(folder), given.hidden, given.layers, given.repeats)
    print(f"checkpoint of {result['parameters']:,} parameters: {result['megabytes']:.1f} MB")
    print(f"written in {result['seconds']:.3f} s (median), {result['slowest']:.3f} s (maximum)")
    print(f"one a minute takes {result['share']:.2%} of the time")
    for name in ("new", "resumed"):
        start, first = result[name]
        print(f"{name}: {start:.1f} s for imports and tokenisation, {first:.1f} s more to the end of the first step")
    print_json(result)


def measure(folder: Path, hidden: int, layers: int, repeats: int) -> dict:
    from ltc_textgen.config import RunConfig
    from ltc_textgen.data.token_cache import prepare
    from ltc_textgen.training import loop, session
    from ltc_textgen.training.report import Reporter
    from ltc_textgen.training.session import Session

    draw = random.Random(0)
    (folder / "text.txt").write_text("".join(draw.choice("abcdefgh \n") for _ in range(100_000)))
    model = {"block": "liquid", "coupling": "diagonal", "steps": 1, "step_size": 1.0}
    run = RunConfig(
        data={"data": str(folder / "text.txt"), "tokenizer": "char"},
        model={**model, "hidden_size": hidden, "num_layers": layers},
        train={"batch_size": 16, "sequence_length": 64, "max_steps": 3, "sample_tokens": 0, "device": "cpu"},
    )
    times: list[float] = []
    kept: list[Session] = []
    original = loop.build

    def build(*arguments: object) -> Session:
        kept.append(original(*arguments))  # type: ignore[arg-type]
        return kept[-1]

    loop.build = build  # type: ignore[assignment]
    loop.train(run, folder / "run", reporter=Reporter(), data=prepare(run.data))
    loop.build = original
    for _ in range(repeats):
        kept[0].progress.step += 1
        start = time.perf_counter()
        session.save(kept[0])
        times.append(time.perf_counter() - start)
    newest = sorted((folder / "run" / "checkpoints").iterdir())[-1]
    size = sum(path.stat().st_size for path in newest.iterdir() if path.name != "best.safetensors")
    longer = run.model_copy(update={"train": run.train.model_copy(update={"max_steps": repeats + 5})})
    (folder / "run.json").write_text(longer.model_dump_json())
    return {
        "parameters": sum(p.numel() for p in kept[0].model.parameters()),
        "megabytes": size / 1e6,
        "seconds": statistics.median(times),
        "slowest": max(times),
        "share": statistics.median(times) / 60,
        "new": first_step(folder, folder / "new", "new"),
        "resumed": first_step(folder, folder / "run", "resume"),
    }


def first_step(folder: Path, out: Path, how: str) -> tuple[float, float]:
    """Seconds from process start to the tokens, and from there to the end of the first step."""
    command = [sys.executable, "-c", FIRST_STEP, str(folder / "run.json"), str(out), str(time.time()), how]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(shown[-2]), float(shown[-1])


if __name__ == "__main__":
    main()
