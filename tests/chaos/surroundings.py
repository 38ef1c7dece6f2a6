"""A clock that jumps, a system without UTF-8, a reader that goes away."""

import os
import random
import subprocess
import sys
import time
from unittest import mock

from faults import MissError, Place, expect, fault
from training_runs import Listener

from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.loop import train


@fault(19, "the date jumps by days, back and forth", "same weights; a run by time keeps to its time")
def jumping_clock(place: Place) -> str:
    out, draw, real = place.fresh(), random.Random(4), time.time

    def jumping() -> float:
        return real() + draw.uniform(-1e6, 1e6)

    with mock.patch("time.time", jumping):
        train(place.plan(), out / "steps", reporter=Listener())
        start = time.monotonic()
        timed = place.plan(max_steps=None, eval_steps=None, time_budget=2.0)
        result = train(timed, out / "timed", reporter=Listener())
    took = time.monotonic() - start
    expect(result.step > 5 and 1.0 < result.seconds < 4.0, f"{result.step} steps in {result.seconds:.1f} s")
    return f"{place.same(out / 'steps')}; 2 s of training took {took:.1f} s"


@fault(19, "LANG=C, no terminal, a path with spaces and signs, `| head -1`", "trains to its end and saves")
def strange_surroundings(place: Place) -> str:
    folder = place.fresh() / "a path with späces ☃ 雪"
    folder.mkdir()
    text = folder / "tëxt.txt"
    text.write_text(place.corpus.read_text() + "é☃" * 20)
    out = folder / "rün"
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    environment["PYTHONCOERCECLOCALE"] = "0"
    small = [f"--set={key}" for key in ("hidden_size=16", "num_layers=1", "batch_size=4", "sequence_length=16")]
    command = [
        sys.executable,
        "-m",
        "ltc_textgen",
        "train",
        "--data",
        str(text),
        "--max-steps",
        "20",
        "--out",
        str(out),
    ]
    training = subprocess.Popen(
        [*command, *small], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    head = subprocess.run(["head", "-1"], stdin=training.stdout, capture_output=True, timeout=120)
    training.stdout.close()  # type: ignore[union-attr]
    code = training.wait(timeout=120)
    if not out.is_dir():
        raise MissError(f"exit {code}: {head.stdout.decode(errors='replace')}")
    expect([path.name for path in list_checkpoints(out)][:1] == ["step-00000020"], list_checkpoints(out))
    expect(code == 0, f"exit {code}")
    return "trained to its end, exit 0"
