"""Write text with an exported network. It needs onnxruntime, numpy and tokenizers, and nothing else.

    python generate.py "It was" --max-tokens 300 --temperature 0.8 --top-p 0.95 --seed 1

`Network` is all that a program of one's own needs: it reads one token at a time, its state goes in and comes out.
The same seed gives the text of `ltc generate --seed`, as long as no draw was on the edge between two tokens.
"""

import argparse
import hashlib
import importlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()  # before the first import that takes long

import numpy as np  # noqa: E402

FORMAT = 1
"""Version of what `ltc export` writes that this program reads."""

METADATA = "ltc_textgen"
"""Key of the model's description in the metadata of the .onnx file: JSON, as in export.json."""


class Network:
    """An exported network on the CPU.

    Args:
        path: A .onnx file that `ltc export` wrote.
        threads: One is fastest for one text and a small network.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own have no other common base
            raise ValueError(f"{path} is damaged or no ONNX model: {str(error).splitlines()[0]}") from error
        self._brief = onnxruntime.RunOptions()
        self._brief.only_execute_path_to_fetches = True  # time constants that nobody asks for cost nothing
        description = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        if description is None:
            raise ValueError(f"{path} was not written by ltc export")
        self.about: dict[str, Any] = json.loads(description)
        if self.about["format"] != FORMAT:
            raise ValueError(f"{path} is of format {self.about['format']}, this program reads format {FORMAT}")
        self._states = self.about["states"]

    def rest(self, batch: int = 1) -> dict[str, np.ndarray]:
        """The state before the first token of `batch` texts."""
        return {
            state["name"]: np.broadcast_to(
                np.float32(state["initial"]).reshape(state["shape"] if np.ndim(state["initial"]) else ()),
                (batch, *state["shape"]),
            ).copy()
            for state in self._states
        }

    def step(
        self, tokens: np.ndarray, state: dict[str, np.ndarray], elapsed: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Read one token of each text: logits of the next (batch, vocabulary), and the state after it.

        Args:
            tokens: Ids, int64, (batch,).
            state: State before the token.
            elapsed: Time from this token to the next, float32, (batch,); 1 everywhere if None.
        """
        names = [item["next"] for item in self._states]
        logits, *after = self._run(["logits", *names], tokens, state, elapsed, self._brief)
        return logits, {item["name"]: value for item, value in zip(self._states, after, strict=True)}

    def observe(
        self, tokens: np.ndarray, state: dict[str, np.ndarray], elapsed: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], list[np.ndarray]]:
        """As `step`, and the time constant of every neuron in tokens, (batch, neurons) a layer."""
        logits, *rest = self._run(None, tokens, state, elapsed, None)
        after = {item["name"]: value for item, value in zip(self._states, rest, strict=False)}
        return logits, after, rest[len(self._states) :]

    def _run(
        self, names: list[str] | None, tokens: np.ndarray, state: dict[str, np.ndarray], elapsed: Any, options: Any
    ) -> list[np.ndarray]:
        time_passed = np.ones(len(tokens), np.float32) if elapsed is None else elapsed
        return self._session.run(names, {"token": tokens, "elapsed": time_passed, **state}, options)


class Uniform:
    """Numbers in [0, 1) that a seed determines: the Mersenne Twister as PyTorch seeds and reads it.

    Args:
        seed: >= 0.
    """

    def __init__(self, seed: int) -> None:
        own = int(np.random.SeedSequence(entropy=seed, spawn_key=(0,)).generate_state(1, np.uint64)[0])
        self._twister = np.random.RandomState(own & 0xFFFFFFFF)

    def next(self) -> float:
        """The next number, of 53 random bits."""
        high, low = (int(word) for word in self._twister.randint(0, 2**32, size=2, dtype=np.uint32))
        return ((high << 32 | low) & (1 << 53) - 1) / (1 << 53)


def choose(logits: np.ndarray, uniform: Uniform, temperature: float, top_k: int, top_p: float) -> int:
    """Draw the next token.

    Args:
        logits: (vocabulary,); -inf is never drawn.
        uniform: Where chance comes from.
        temperature: Below 1 sharper; 0 always takes the likeliest token.
        top_k: Only the k likeliest tokens; 0 keeps all.
        top_p: Only the likeliest tokens that together reach this probability.
    """
    largest = logits.max()
    if not np.isfinite(largest):
        raise ValueError("the network's logits are NaN or infinite")
    if temperature == 0:
        return int(logits.argmax())
    logits = (logits - largest) / np.float32(temperature)
    if 0 < top_k < len(logits):
        logits = np.where(logits < np.partition(logits, -top_k)[-top_k], -np.inf, logits)
    if top_p < 1:
        order = np.argsort(-logits, kind="stable")
        probability = np.exp(logits[order])
        probability /= probability.sum()
        surplus = order[np.cumsum(probability) - probability >= top_p]
        logits[surplus] = -np.inf
    cumulative = np.cumsum(np.exp(logits.astype(np.float64)))
    return int(np.searchsorted(cumulative, uniform.next() * cumulative[-1], side="right"))


class Text:
    """Text to token ids and back, for the files of an export.

    Args:
        directory: What `ltc export` wrote.
        about: The model's description.
    """

    def __init__(self, directory: Path, about: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        content = (directory / "tokenizer.json").read_bytes()
        if hashlib.sha256(content).hexdigest() != about["tokenizer_sha256"]:
            raise ValueError("tokenizer.json is not the one that this model was trained with")
        self._tokenizer = Tokenizer.from_buffer(content)
        self._tokenizer.encode_special_tokens = True  # text that happens to spell a special token is text
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._table = json.loads((directory / "decoding.json").read_text(encoding="utf-8"))
        if len(self._table.get("pieces", range(about["vocabulary"]))) != about["vocabulary"]:
            raise ValueError("decoding.json is not the one that this model was exported with")
        if str(directory) not in sys.path:
            sys.path.append(str(directory))
        self._decoding = importlib.import_module("detokenize")  # a file of the export

    def encode(self, text: str) -> list[int]:
        """Token ids; no special tokens are added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def stream(self) -> Any:
        """A decoder: push(id) gives the text that is certain, flush() the rest."""
        table = self._table
        if table["style"] == "bytes":
            return self._decoding.ByteStream([bytes.fromhex(piece) for piece in table["pieces"]])
        if table["style"] == "words":
            return self._decoding.WordStream(table["pieces"], table["prefix"])
        silent = frozenset(table["silent"])
        return self._decoding.WindowStream(lambda ids: self._tokenizer.decode(ids, skip_special_tokens=False), silent)


def write(network: Network, text: Text, prompt: str, arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Continue a prompt: pieces of text and the number of tokens so far, as they are made."""
    separator = network.about["separator"]
    ids = text.encode(prompt) if prompt else [separator]
    if not ids:
        raise ValueError(f"the tokenizer finds no token in {prompt[:40]!r}")
    state, decoder, uniform = network.rest(), text.stream(), Uniform(arguments.seed)
    logits = np.empty(0)
    for token in ids:
        logits, state = network.step(np.array([token]), state)
    # The decoder reads the prompt too: whether the first word needs a space depends on what came before.
    shown = "".join([decoder.push(token) for token in ids])
    whole = text.stream()
    held = ("".join([whole.push(token) for token in ids]) + whole.flush())[len(shown) :].strip()

    def own(piece: str) -> str:
        """Without the end of the prompt, if the decoder had held that back."""
        nonlocal held
        if piece and held:
            kept, held = held, ""
            return piece.lstrip().removeprefix(kept) if piece.lstrip().startswith(kept) else piece
        return piece

    for count in range(1, arguments.max_tokens + 1):
        if arguments.ignore_separator:
            logits[0, separator] = -np.inf
        token = choose(logits[0], uniform, arguments.temperature, arguments.top_k, arguments.top_p)
        if token == separator:
            break
        yield own(decoder.push(token)), count
        if count < arguments.max_tokens:
            logits, state = network.step(np.array([token]), state)
    yield own(decoder.flush()), count


def main() -> int:
    """Read the command line, write text to stdout and a line on speed to stderr; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write text with a network that ltc export wrote.")
    add = parser.add_argument
    add("prompt", nargs="?", default="", help="text to continue")
    add("--directory", type=Path, default=Path(__file__).parent, help="the export (default: where this program lies)")
    add("--int8", action="store_true", help="use model.int8.onnx")
    add("--max-tokens", "-n", type=int, default=200)
    add("--temperature", type=float, default=0.8, help="0 always takes the likeliest token (default: 0.8)")
    add("--top-k", type=int, default=0, help="only the k likeliest tokens; 0 keeps all")
    add("--top-p", type=float, default=1.0, help="only the likeliest tokens that together reach probability p")
    add("--seed", type=int, default=None, help="same seed, same text")
    add("--ignore-separator", action="store_true", help="go on after the end of a document")
    add("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.max_tokens < 1 or arguments.temperature < 0 or arguments.top_k < 0 or not 0 < arguments.top_p <= 1:
        parser.error("expected max-tokens >= 1, temperature >= 0, top-k >= 0 and 0 < top-p <= 1")
    if arguments.threads < 1 or (arguments.seed or 0) < 0:
        parser.error("expected threads >= 1 and seed >= 0")
    arguments.seed = secrets.randbits(63) if arguments.seed is None else arguments.seed
    first, tokens = 0.0, 0
    try:
        path = arguments.directory / ("model.int8.onnx" if arguments.int8 else "model.onnx")
        if not path.is_file():
            raise ValueError(f"there is no {path}: give the directory that ltc export wrote with --directory")
        network = Network(path, arguments.threads)
        text = Text(arguments.directory, network.about)
        print(arguments.prompt, end="", flush=True)
        for piece, count in write(network, text, arguments.prompt, arguments):
            first, tokens = first or time.perf_counter(), count
            print(piece, end="", flush=True)
        print()
    except BrokenPipeError:  # the reader has had enough, as in `generate.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    rate = f", then {(tokens - 1) / (time.perf_counter() - first):,.0f} tokens/s" if tokens > 1 else ""
    print(f"first token after {first - BEGIN:.2f} s{rate}, seed {arguments.seed}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
