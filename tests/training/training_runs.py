"""Tiny runs for the tests of training: settings, a hermetic corpus, and a training process of its own."""

import json
import multiprocessing
import os
import random
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import load_file

from ltc_textgen.config import RunConfig
from ltc_textgen.errors import LTCError
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.report import PlainReporter, Reporter

WORDS = "the cat dog bird saw ate liked a big small red old house tree river then it ran home again"

TINY = {
    "block": "liquid",
    "coupling": "diagonal",
    "hidden_size": 16,
    "num_layers": 2,
    "steps": 1,
    "step_size": 1.0,
    "dropout": 0.2,
}


def write_corpus(directory: Path, words: int = 3000, seed: int = 0) -> Path:
    """A text with some order in it."""
    draw = random.Random(seed)
    sentences = [" ".join(draw.choice(WORDS.split()) for _ in range(8)) + ".\n" for _ in range(words // 8)]
    path = directory / f"corpus{seed}.txt"
    path.write_text("".join(sentences), encoding="utf-8")
    return path


def settings(corpus: Path, model: dict | None = None, **train) -> RunConfig:
    """A run over `corpus` by characters; 4 batch rows of 16 tokens on one thread."""
    values = {"batch_size": 4, "sequence_length": 16, "threads": 1, "sample_tokens": 8, "device": "cpu", **train}
    return RunConfig(data={"data": str(corpus), "tokenizer": "char"}, model={**TINY, **(model or {})}, train=values)


class Listener(Reporter):
    """A reporter that remembers, and calls back after each step."""

    def __init__(self, after_step=None) -> None:
        self.notes, self.paces, self.validations, self.closed = [], [], [], False
        self._after_step = after_step

    def note(self, text):
        self.notes.append(text)

    def step(self, pace):
        self.paces.append(pace)
        if self._after_step:
            self._after_step(pace)

    def validation(self, result):
        self.validations.append(result)

    def close(self):
        self.closed = True


def metrics(out: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def curve(out: Path) -> list[tuple]:
    """The loss curve without its times."""
    keys = ("step", "loss", "val_loss", "train_loss", "learning_rate", "sample", "best")
    return [tuple(line.get(key) for key in keys) for line in metrics(out)]


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    """Weights of the newest checkpoint."""
    return load_file(list_checkpoints(out)[0] / "model.safetensors")


def same_tensors(ours: Path, theirs: Path) -> None:
    """Two safetensors files hold the same numbers (the order of their headers may differ)."""
    a, b = load_file(ours), load_file(theirs)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), f"{ours.name}: {key}"


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two runs ended with the same last weights, best weights, moments, states and loss curve, to the last bit."""
    assert list_checkpoints(ours)[0].name == list_checkpoints(theirs)[0].name
    for name in ("model", "optimizer", "state", "random", "best"):
        same_tensors(*(list_checkpoints(run)[0] / f"{name}.safetensors" for run in (ours, theirs)))
    same_tensors(ours / "model.safetensors", theirs / "model.safetensors")
    assert curve(ours) == curve(theirs)


class _Telling(PlainReporter):
    """Sends every line to the test; a step as "made N"."""

    def __init__(self, lines: Connection) -> None:
        self._lines = lines

    def note(self, text):
        self._lines.send(text)

    def step(self, pace):
        self.note(f"made {pace.step}")


def _train(recipe: str, out: Path, resume: bool, lines: Connection) -> None:
    from ltc_textgen.training import checkpoint
    from ltc_textgen.training.loop import train

    write = checkpoint.write_checkpoint

    def announced(run, step, *given, **more):
        lines.send(f"saving {step}")
        path = write(run, step, *given, **more)
        lines.send(f"saved {step}")
        return path

    checkpoint.write_checkpoint = announced
    try:
        code = train(RunConfig.model_validate_json(recipe), out, resume=resume, reporter=_Telling(lines)).exit_code
    except LTCError as error:
        lines.send(str(error))
        code = error.exit_code
    lines.close()
    sys.exit(code)


class Process:
    """A training process of its own, forked from one that has the imports behind it.

    Its lines are the notes of the run, "made N" after each step, and "saving N" and "saved N" around a checkpoint.
    """

    def __init__(self, run: RunConfig, out: Path, resume: bool = False) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ltc_textgen.training.loop"])
        self._lines, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_train, args=(run.model_dump_json(), out, resume, sender), daemon=True)
        self._process.start()
        sender.close()
        self.pid, self.lines = self._process.pid, []

    def wait_for(self, start: str) -> None:
        """Read lines until one starts so."""
        while not self._next().startswith(start):
            pass

    def wait_for_any(self, start: str) -> bool:
        """Read lines until one starts so; False if the process ended without."""
        with suppress(EOFError):
            self.wait_for(start)
            return True
        return False

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def end(self, timeout: float = 60) -> int:
        """Read all lines, wait, and return the exit code."""
        with suppress(EOFError):
            while True:
                self._next()
        self._process.join(timeout)
        return self._process.exitcode

    def _next(self) -> str:
        assert self._lines.poll(60), self.lines
        self.lines.append(self._lines.recv())
        return self.lines[-1]
