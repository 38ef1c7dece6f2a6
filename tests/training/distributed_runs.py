"""What the test of several processes runs under torchrun: scenarios, whose results the main process writes as JSON."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from training_runs import Listener, settings

from ltc_textgen.errors import LTCError
from ltc_textgen.training import loop
from ltc_textgen.training.loop import train

RANK = int(os.environ.get("RANK", "0"))


def break_steps(broken: set[int]):
    """Make the loss of this process NaN in these steps (numbered from 1)."""
    original = loop.build

    def build(*args):
        session = original(*args)
        module = session.module

        class Broken(torch.nn.Module):
            def forward(self, **given):
                loss, *rest = module(**given)
                return (loss * float("nan") if session.progress.step + 1 in broken else loss), *rest

        session.module = Broken()
        return session

    loop.build = build
    return original


def main(corpus: Path, out: Path) -> None:
    plain = settings(corpus, {"dropout": 0.0}, max_steps=30, eval_steps=10, learning_rate=0.02)
    dropping = settings(corpus, max_steps=30, eval_steps=10, save_steps=7, learning_rate=0.02)
    adaptive = {"head": "adaptive", "adaptive_cutoffs": [4, 16], "dropout": 0.0}
    results = {}

    def attempt(name, run, directory, *, resume=False, reporter=None):
        try:
            result = train(run, out / directory, resume=resume, reporter=reporter or Listener())
            results[name] = result.to_dict()
        except LTCError as error:
            results[name] = {"error": str(error)}

    attempt("plain", plain, "plain")
    attempt("adaptive", settings(corpus, adaptive, max_steps=30, learning_rate=0.02), "adaptive")
    starting = {
        "learned_initial_state": True,
        "dropout": 0.0,
    }  # in most steps no row is reset, and the initial state has no gradient
    attempt("starting", settings(corpus, starting, max_steps=30, learning_rate=0.02), "starting")
    attempt("whole", dropping, "whole")

    # Only the second process receives the signal; both stop after the same step.
    original = loop._report_step

    def report_step(session):
        original(session)
        if session.progress.step == 12 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    loop._report_step = report_step
    attempt("stopped", dropping, "parts")
    loop._report_step = original
    attempt("resumed", dropping, "parts", resume=True)

    if RANK == 1:
        intact = break_steps({3, 4, 9})
    attempt("skipping", plain, "skipping")
    if RANK == 1:
        loop.build = intact
        break_steps(set(range(12, 100)))
    attempt("broken", plain, "broken")
    if RANK == 0:
        (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
