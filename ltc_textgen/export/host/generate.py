"""Generate text with an exported network; needs onnxruntime and numpy, for most tokenizers also tokenizers.

    python generate.py "It was" --max-tokens 300 --temperature 0.8 --top-p 0.95 --seed 1

The same seed gives the text of `ltc generate --seed`, unless a draw fell on the edge between two tokens.

Exit codes: 0 done, 1 failed, 2 wrong use, 4 the export is damaged or foreign, 130 interrupted.
"""

import argparse
import hashlib
import importlib
import os
import re
import secrets
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

BEGIN = time.perf_counter()  # before the first import that takes long

try:
    import numpy as np

    if TYPE_CHECKING or __package__:
        from ltc_textgen.export.host.network import (
            ExportError,
            Files,
            Network,
            UseError,
            first_line,
            imported,
            is_integer,
            is_strings,
            parsed,
        )
    else:  # run as a program, beside network.py
        from network import ExportError, Files, Network, UseError, first_line, imported, is_integer, is_strings, parsed
except ImportError as missing:
    print(f"generate.py: {missing}: pip install onnxruntime numpy", file=sys.stderr)
    sys.exit(2)


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
        logits: (vocabulary,), float32; -inf is never drawn.
        uniform: Where chance comes from.
        temperature: Below 1 sharper; 0, and what is 0 in float32, takes the likeliest token.
        top_k: Only the k likeliest tokens; 0 keeps all.
        top_p: Only the likeliest tokens that together reach this probability.

    Raises:
        ValueError: If the logits are no distribution.
    """
    largest = logits.max()
    if not np.isfinite(largest):
        raise ValueError("the network's logits are NaN or infinite")
    scale = np.float32(temperature)
    if scale == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # to -inf, a probability of 0
        logits = (logits - largest) / scale
    if 0 < top_k < len(logits):
        logits = np.where(logits < np.partition(logits, -top_k)[-top_k], -np.inf, logits)
    if top_p < 1:
        order = np.argsort(-logits, kind="stable")
        probability = np.exp(logits[order])
        probability /= probability.sum()
        surplus = np.cumsum(probability) - probability >= top_p
        surplus[0] = False  # top_p may be 0 in float32
        logits[order[surplus]] = -np.inf
    cumulative = np.cumsum(np.exp(logits.astype(np.float64)))
    return int(np.searchsorted(cumulative, uniform.next() * cumulative[-1], side="right"))


def detokenizer() -> types.ModuleType:
    """detokenize.py beside this program, checked like all files of the export; inside the package, its own."""
    here = Path(__file__).parent
    if not (here / "export.json").exists():
        return importlib.import_module("ltc_textgen.data.detokenize")
    module = types.ModuleType("detokenize")
    exec(compile(Files(here).read("detokenize.py"), "detokenize.py", "exec"), module.__dict__)
    return module


class Text:
    """Text to token ids and back.

    Args:
        files: An export.
        about: The description of the model that reads the ids.

    Raises:
        ExportError: If tokenizer.json or decoding.json is damaged, or of another model.
    """

    def __init__(self, files: Files, about: dict[str, Any]) -> None:
        content = files.read("tokenizer.json")
        if hashlib.sha256(content).hexdigest() != about["tokenizer_sha256"]:
            raise ExportError("tokenizer.json is not the one that this model was trained with")
        self.kind, self._size = about["tokenizer"], about["vocab_size"]
        self._vocabulary, self.unknown = vocabulary_of(parsed(content, "tokenizer.json"), self._size)
        self._tokenizer: Any = None if self.kind in ("char", "byte") else self._loaded(content)
        self._table = parsed(files.read("decoding.json"), "decoding.json")
        require_decoding(self._table, self._size)
        self._detokenize = detokenizer()

    @staticmethod
    def _loaded(content: bytes) -> Any:
        tokenizers = imported("tokenizers")
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the Rust side raises bare Exception
            raise ExportError(f"tokenizer.json is damaged: {first_line(error)}") from error
        tokenizer.encode_special_tokens = True  # text that happens to spell a special token is text
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids; no special tokens are added."""
        if self.kind == "byte":
            ids = list(text.encode())
        elif self.kind == "char":
            unknown = -1 if self.unknown is None else self.unknown
            ids = [self._vocabulary.get(character, unknown) for character in text]
        else:
            ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if ids and not (min(ids) >= 0 and max(ids) < self._size):
            raise ExportError("tokenizer.json gives ids that the network does not have")
        return ids

    def stream(self) -> Any:
        """A decoder: push(id) gives the text that is certain, flush() the rest."""
        table = self._table
        if table["style"] == "bytes":
            return self._detokenize.ByteStream([bytes.fromhex(entry) for entry in table["pieces"]])
        if table["style"] == "words":
            return self._detokenize.WordStream(table["pieces"], table["prefix"])
        silent = frozenset(table["silent"])
        decode = partial(self._tokenizer.decode, skip_special_tokens=False)
        return self._detokenize.WindowStream(decode, silent)

    def prompt(self, text: str, notify: Callable[[str], None]) -> list[int]:
        """Token ids of a prompt; `notify` is given a line that names the characters that the tokenizer does not know.

        Raises:
            UseError: If the prompt has no tokens.
        """
        ids = self.encode(text)
        if not ids:
            raise UseError(f"prompt: the {self.kind} tokenizer finds no token in {text[:40]!r}")
        unknown = 0 if self.unknown is None else ids.count(self.unknown)
        if unknown:
            strange = [character for character in dict.fromkeys(text) if self.unknown in self.encode(character)]
            names = f" ({', '.join(map(repr, strange[:10]))}{', ...' if len(strange) > 10 else ''})" if strange else ""
            notify(f"prompt: {unknown} of {len(ids)} tokens are unknown to the {self.kind} tokenizer{names}")
        return ids


def vocabulary_of(document: dict[str, Any], size: int) -> tuple[dict[str, int], int | None]:
    """The ids of a tokenizer.json, and the id of its unknown token if it has one.

    Raises:
        ExportError: If an id is not one of the network's.
    """
    model: Any = document.get("model")
    added = document.get("added_tokens") or []
    try:
        entries = model["vocab"]
        unigram = isinstance(entries, list)
        ids = {entry[0]: index for index, entry in enumerate(entries)} if unigram else dict(entries)
        given = [*ids.values(), *(token["id"] for token in added)]
        ids |= {token["content"]: token["id"] for token in added}
        unknown = model.get("unk_id") if unigram else ids.get(model.get("unk_token"))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ExportError("tokenizer.json is damaged: it holds no vocabulary") from error
    if not all(is_integer(token, 0, size) for token in given):
        raise ExportError(f"tokenizer.json is damaged: its ids are not all in 0..{size - 1}")
    return ids, unknown


def require_decoding(table: dict[str, Any], size: int) -> None:
    """Check decoding.json against the size of the vocabulary.

    Raises:
        ExportError: If it does not say what each id decodes to.
    """
    style, entries = table.get("style"), table.get("pieces", [])
    good = style == "window" and isinstance(table.get("silent"), list)
    good = good and all(is_integer(token, 0, size) for token in table["silent"])
    if style in ("bytes", "words"):
        good = is_strings(entries) and len(entries) == size
        good = good and (isinstance(table.get("prefix"), str) if style == "words" else all(map(is_hex, entries)))
    if not good:
        raise ExportError("decoding.json is not the one that this model was exported with")


def is_hex(text: str) -> bool:
    """Whether a string is bytes in hexadecimal."""
    return len(text) % 2 == 0 and re.fullmatch("[0-9a-f]*", text) is not None


def normalized(text: str) -> str:
    """A prompt as the package reads it: without byte order marks, with LF for every CR and CRLF.

    Raises:
        UseError: If it holds NUL or half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UseError(f"prompt: character {error.start} is half of a surrogate pair, not a character") from error
    if "\0" in text:
        raise UseError(f"prompt: character {text.index(chr(0))} is NUL: is this a text?")
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


def printable(text: str) -> str:
    r"""Text whose control characters are escapes, \x1b: a terminal would obey them. Tabs and line ends stay."""
    return re.sub(r"[\0-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def write(network: Network, text: Text, ids: list[int], options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Continue a prompt: parts of the text and the number of tokens so far, as they are made."""
    eos_token_id = network.about["eos_token_id"]
    state, decoder, uniform = network.initial_state(), text.stream(), Uniform(options.seed)
    logits = np.empty(0)
    for token in ids:
        logits, state = network.step(np.array([token]), state)
    # The decoder reads the prompt too: whether the first word needs a space depends on what came before.
    shown = "".join([decoder.push(token) for token in ids])
    whole = text.stream()
    held = ("".join([whole.push(token) for token in ids]) + whole.flush())[len(shown) :].strip()

    def own(part: str) -> str:
        """Without the end of the prompt, if the decoder had held that back."""
        nonlocal held
        if part and held:
            kept, held = held, ""
            return part.lstrip().removeprefix(kept) if part.lstrip().startswith(kept) else part
        return part

    for count in range(1, options.max_tokens + 1):
        if options.ignore_eos:
            logits[0, eos_token_id] = -np.inf
        token = choose(logits[0], uniform, options.temperature, options.top_k, options.top_p)
        if token == eos_token_id:
            break
        yield own(decoder.push(token)), count
        if count < options.max_tokens:
            logits, state = network.step(np.array([token]), state)
    yield own(decoder.flush()), count


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Any:
        """Raise `UseError` instead of exiting."""
        raise UseError(f"{message} (see --help)")


def between(kind: type, low: int | float, high: int | float, above: bool = False) -> Callable[[str], Any]:
    """A reader of an option's value: a number from `low` (without it if `above`) to `high`."""
    words = f"a number {'above' if above else 'from'} {low:g} to {high:g}"

    def read(given: str) -> Any:
        try:
            value = kind(given)
        except ValueError:
            value = None
        if value is None or not (low < value if above else low <= value) or not value <= high:
            raise argparse.ArgumentTypeError(f"expected {words}, got {given[:40]!r}")
        return value

    return read


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UseError: If an option is unknown or out of range.
    """
    parser = Parser(prog="generate.py", description="Generate text with a network that ltc export wrote.")
    add = parser.add_argument
    add("prompt", nargs="?", default="", help="text to continue")
    add("--directory", type=Path, default=Path(__file__).parent, help="the export (default: where this program is)")
    add("--int8", action="store_true", help="use model.int8.onnx")
    add("--max-tokens", "-n", type=between(int, 1, 2**63), default=200)
    temperature = "0 takes the likeliest token (default: 0.8)"
    add("--temperature", type=between(float, 0, 100), default=0.8, help=temperature)
    add("--top-k", type=between(int, 0, 2**63), default=0, help="only the k likeliest tokens; 0 keeps all")
    top_p = "only the likeliest tokens that together reach probability p"
    add("--top-p", type=between(float, 0, 1, above=True), default=1.0, help=top_p)
    add("--seed", type=between(int, 0, 2**63 - 1), default=None, help="same seed, same text")
    add("--ignore-eos", action="store_true", help="continue after the end of a document")
    add("--threads", type=between(int, 1, 1024), default=1)
    options = parser.parse_args(arguments)
    options.seed = secrets.randbits(63) if options.seed is None else options.seed
    try:  # where the locale is not UTF-8, Python hands over the bytes that it could not decode as surrogates
        options.prompt = normalized(os.fsencode(options.prompt).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UseError(f"the prompt is not UTF-8: byte {error.start}") from error
    return options


def generate(options: argparse.Namespace) -> None:
    """Write the prompt and its continuation to stdout, and a line on speed to stderr."""
    files = Files(options.directory)
    name = "model.int8.onnx" if options.int8 else "model.onnx"
    network = Network(files.read(name), options.threads, name)
    text = Text(files, network.about)
    start = network.about.get("start_id", network.about["eos_token_id"])
    ids = text.prompt(options.prompt, report) if options.prompt else [start]
    shown: Callable[[str], str] = printable if sys.stdout.isatty() else str
    first, tokens = 0.0, 0
    print(shown(options.prompt), end="", flush=True)
    for part, count in write(network, text, ids, options):
        first, tokens = first or time.perf_counter(), count
        print(shown(part), end="", flush=True)
    print(flush=True)
    rate = f", then {(tokens - 1) / (time.perf_counter() - first):,.0f} tokens/s" if tokens > 1 else ""
    report(f"first token after {first - BEGIN:.2f} s{rate}, seed {options.seed}")


def report(message: str) -> None:
    """Print one line to stderr, if that is open."""
    try:
        print(printable(" ".join(message.split())), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        discard(sys.stderr)


def discard(stream: Any) -> None:
    """Let what is still to be written to a broken stream go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_streams() -> None:
    """Make every character printable on stdout and stderr, and stand in for one that is closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    open_streams()
    try:
        try:
            generate(options_of(None if arguments is None else list(arguments)))
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
    except BrokenPipeError:  # the reader has had enough, as in `generate.py | head`
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        report(f"generate.py: cannot write: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        return 130
    except (UseError, ExportError) as error:
        report(f"generate.py: {error}")
        return 2 if isinstance(error, UseError) else 4
    except ValueError as error:
        report(f"generate.py: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
