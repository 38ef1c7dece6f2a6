"""What each of several processes does; started by a launcher with the name of a scenario, a corpus and a folder."""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from distributed_runs import break_steps
from training_runs import Listener, settings

from ltc_textgen.config import RunConfig
from ltc_textgen.errors import LTCError
from ltc_textgen.training import distributed, loop, validation

STEPS = 30
PATIENCE = 30
"""Seconds for which processes wait for one that hangs."""


def plan(corpus: Path, *, dropout: float = 0.2, **given: object) -> RunConfig:
    values = {"max_steps": STEPS, "eval_steps": 20, "save_steps": 3, "learning_rate": 0.02, "batch_size": 16}
    return settings(corpus, {"dropout": dropout}, **{**values, **given})


def kill(deaths: dict[int, tuple[int, int]], number: int = signal.SIGKILL) -> None:
    """Die by SIGKILL, or get another signal, after a step, by the number of restarts: {restarts: (rank, step)}."""
    rank, step = deaths.get(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), (-1, -1))
    original = loop._report_step

    def report_step(session):  # type: ignore[no-untyped-def]
        original(session)
        if (session.runtime.rank, session.progress.step) == (rank, step):
            print(f"killed at {time.monotonic()}", flush=True)
            os.kill(os.getpid(), number)

    loop._report_step = report_step


def linger(seconds: float) -> None:
    """Let the first validation take long."""
    original, score = validation.score_tokens, [seconds]

    def scored(*given, **more):  # type: ignore[no-untyped-def]
        time.sleep(score.pop() if score else 0)
        return original(*given, **more)

    validation.score_tokens = scored


def attempt(run: RunConfig, out: Path, **how: bool) -> dict:
    try:
        return loop.train(run, out, reporter=Listener(), **how).to_dict()
    except LTCError as error:
        return {"error": str(error)}


def main(scenario: str, corpus: Path, out: Path) -> None:
    rank = int(os.environ.get("RANK", "0"))
    results = {}
    if scenario == "whole":
        loop.train(plan(corpus), out / "run", reporter=Listener())
    elif scenario == "killed":
        kill({0: (1, 10)})
        loop.train(plan(corpus), out / "run", reporter=Listener())
    elif scenario == "elastic":
        kill({0: (1, 10), 1: (0, 20)})
        loop.train(plan(corpus), out / "run", resume=True, reporter=Listener())
    elif scenario == "hung":
        distributed.ANSWER = timedelta(seconds=PATIENCE)
        linger(1.5 * PATIENCE)
        kill({0: (1, 10)}, signal.SIGSTOP)
        results["hung"] = attempt(plan(corpus, eval_steps=4), out / "run")
        if rank == 0:
            (out / "results.json").write_text(json.dumps(results))
        sys.exit(1)
    elif scenario == "nan":
        intact = break_steps({3, 4, 9}) if rank == 1 else loop.build
        results["skipping"] = attempt(plan(corpus), out / "skipping")
        loop.build = intact
        if rank == 1:
            break_steps(set(range(12, 100)))
        results["broken"] = attempt(plan(corpus), out / "broken")
    elif scenario == "world":
        results["rejected"] = attempt(plan(corpus, dropout=0.0), out / "grown", resume=True)
        results["grown"] = attempt(plan(corpus, dropout=0.0), out / "grown", resume=True, anyway=True)
    elif scenario == "apart":
        mine = out / ("run" if rank == 0 else "another disk")
        loop.train(plan(corpus), mine, resume=True, reporter=Listener())
        results["disagreeing"] = attempt(plan(corpus, max_steps=STEPS + rank), out / "disagreeing")
    if rank == 0 and results:
        (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
