"""A server as a process of its own, and small runs for it to serve."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI

from ltc_textgen.config import ModelConfig, RunConfig
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.memory import Mixture, NgramMemory, save_memory
from ltc_textgen.runs import fingerprint, save_run, save_weights

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,\n"


def save(directory: Path, tokenizer: TextTokenizer, seed: int, **more: Any) -> Path:
    """A run directory of an untrained network whose logits are far apart and which seldom ends a text."""
    torch.manual_seed(seed)
    settings = {"hidden_size": 16, "num_layers": 2, "steps": 1, **more}
    config = ModelConfig(input_size=tokenizer.vocab_size, coupling="diagonal", block="liquid", **settings)
    model = LiquidTimeConstantNetwork.from_settings(config)
    with torch.no_grad():
        model.lm_head.projection.weight.mul_(4)
        model.lm_head.projection.bias[tokenizer.eos_token_id] = -4
    save_run(directory, model, tokenizer, RunConfig(), {})
    save_weights(directory / "model.safetensors", model, {"tokenizer": tokenizer.fingerprint})
    assert fingerprint(model.settings)
    return directory


def save_runs(directory: Path) -> dict[str, Path]:
    """One run of characters, one of bytes, and one of characters with an n-gram memory."""
    characters = character_tokenizer(ALPHABET)
    runs = {
        "chars": save(directory / "chars", characters, 1),
        "bytes": save(directory / "bytes", byte_tokenizer(), 2),
        "mixed": save(directory / "mixed", characters, 3),
    }
    memory = NgramMemory(characters.vocab_size, 4)
    memory.learn(characters.encode("the sea was calm, and the boat came home.\n" * 20))
    save_memory(runs["mixed"], Mixture.start(memory), characters.fingerprint, {})
    return runs


class Serving:
    """A running `ltc serve`.

    Args:
        runs: Run directories by name.
        options: Of the command.
        environment: Added to that of this process.
    """

    def __init__(self, runs: dict[str, Path], *options: str, **environment: str) -> None:
        command = [sys.executable, "-m", "ltc_textgen", "serve", *(f"{name}={path}" for name, path in runs.items())]
        # A full pipe would block the server.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise AssertionError(f"the server has ended: {self.errors()}")

    def client(self, key: str = "none", **more: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **more)

    def get(self, path: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, document and headers of an answer."""
        return self.send("GET", path, None, **headers)

    def post(self, path: str, document: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.send("POST", path, content, **{"Content-Type": "application/json", **headers})

    def send(self, method: str, path: str, content: bytes | None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, content, names, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, _document(answer.read()), {k.lower(): v for k, v in answer.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, _document(error.read()), {k.lower(): v for k, v in error.headers.items()}

    def metric(self, name: str) -> float:
        """Sum of all series of a metric."""
        _, text, _ = self.get("/metrics")
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and stderr after a signal."""
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode, self.errors()

    def errors(self) -> str:
        """All of stderr so far."""
        self._errors.seek(0)
        return self._errors.read()


def _document(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode()
