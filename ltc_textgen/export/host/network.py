"""An exported network: its files, checked before they are used, and its graph, run one token at a time.

Needs onnxruntime and numpy. `Files` and `Network` are what a program of your own takes from an export.
"""

import hashlib
import importlib
import json
import math
import stat
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2
"""Version of the exports that this program reads."""

METADATA = "ltc_textgen"
"""Key of the model's description in the metadata of the .onnx file: JSON, as in export.json."""

LARGEST_FILE = 2**31
"""Bytes of the largest file of an export."""

LARGEST_STATE = 2**24
"""Numbers in the largest state of one sequence."""


class UseError(ValueError):
    """An option, prompt or installation that cannot work. Exit code 2."""


class ExportError(ValueError):
    """A file of an export that is missing, damaged or foreign. Exit code 4."""


class Files:
    """The files of an export, each read whole and checked against its checksum in export.json.

    Args:
        directory: What `ltc export` wrote.

    Raises:
        ExportError: If export.json is missing or is not the description of an export.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.about = parsed(read_file(directory, "export.json"), "export.json")
        recorded = self.about.pop("sha256", None)  # exports of the first version have none
        if recorded not in (None, description_digest(self.about)):
            raise ExportError("export.json is damaged: its checksum does not match")
        digests = self.about.get("files")
        if not isinstance(digests, dict):
            raise ExportError("export.json is damaged: it lists no files")
        self._digests: dict[str, Any] = digests
        require_description(self.about, "export.json")

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            ExportError: If it is missing, no plain file of the directory, or differs from what was exported.
        """
        if name not in self._digests:
            raise ExportError(f"export.json lists no {name}")
        content = read_file(self._directory, name)
        if hashlib.sha256(content).hexdigest() != self._digests[name]:
            raise ExportError(f"{name} is damaged: its checksum is not that of export.json")
        return content


def read_file(directory: Path, name: str) -> bytes:
    """Read a regular file of `directory`; links that leave it, devices and pipes are rejected.

    Raises:
        ExportError: If there is no such file.
    """
    path = directory / name
    try:
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ExportError(f"{path} is a link out of the export")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ExportError(f"{path} is not a regular file")
        if status.st_size > LARGEST_FILE:
            raise ExportError(f"{path} is larger than 2 GiB")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"{path} cannot be read ({reason}): is this what ltc export wrote?") from error


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `content`.

    Raises:
        ExportError: If it is no JSON object, or holds NaN or an infinity, which are not JSON.
    """

    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        document = json.loads(content.decode("utf-8"), parse_constant=reject)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{name} is damaged: {first_line(error)}") from error
    if not isinstance(document, dict):
        raise ExportError(f"{name} is damaged: it holds no JSON object")
    return document


def description_digest(about: dict[str, Any]) -> str:
    """SHA-256 of what export.json holds besides this checksum."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def require_description(about: dict[str, Any], name: str) -> None:
    """Check type and range of everything that is used of a model's description.

    Raises:
        ExportError: Names the entry that is wrong.
    """
    if about.get("format") != FORMAT:
        raise ExportError(f"{name} is of format {str(about.get('format'))[:20]}, this program reads format {FORMAT}")
    vocab_size, states = about.get("vocab_size"), about.get("states")
    if not is_integer(vocab_size, 1, 2**31):
        raise ExportError(f"{name}: vocab_size: expected a number of tokens")
    assert vocab_size is not None
    if not is_integer(about.get("eos_token_id"), 0, vocab_size):
        raise ExportError(f"{name}: eos_token_id: expected a token id below {vocab_size}")
    if not is_integer(about.get("start_id", 0), 0, vocab_size):
        raise ExportError(f"{name}: start_id: expected a token id below {vocab_size}")
    for key in ("tokenizer", "tokenizer_sha256"):
        if not isinstance(about.get(key), str):
            raise ExportError(f"{name}: {key}: expected a string")
    if not (isinstance(states, list) and all(is_state(state) for state in states)):
        raise ExportError(f"{name}: states: expected names, shapes and initial values")
    if not is_strings(about.get("time_constants")):
        raise ExportError(f"{name}: time_constants: expected names of outputs")


def is_state(state: Any) -> bool:
    """Whether an entry of `states` holds a name, the next state's name, a shape and as many finite initial values."""
    if not isinstance(state, dict) or not is_strings([state.get("name"), state.get("next")]):
        return False
    shape, initial = state.get("shape"), state.get("initial")
    if not (isinstance(shape, list) and len(shape) <= 8 and all(is_integer(size, 1, LARGEST_STATE) for size in shape)):
        return False
    size = math.prod(shape)
    values: list[Any] = initial if isinstance(initial, list) else [initial]
    if size > LARGEST_STATE or (isinstance(initial, list) and len(initial) != size):
        return False
    return all(type(value) in (int, float) and abs(value) <= float(np.finfo(np.float32).max) for value in values)


def is_integer(value: Any, low: int, end: int) -> bool:
    """Whether a value is an integer of low <= value < end."""
    return type(value) is int and low <= value < end


def is_strings(values: Any) -> bool:
    """Whether a value is a list of strings."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def imported(name: str) -> Any:
    """A module that is not of Python's own library.

    Raises:
        UseError: If it is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UseError(f"{name} is needed ({first_line(error)}): pip install {name}") from error


class Network:
    """An exported network on the CPU.

    Args:
        model: A .onnx file that `ltc export` wrote, or its bytes.
        threads: One is fastest for one sequence and a small network.
        name: What messages call it.

    Raises:
        ExportError: If it is damaged, or no model that `ltc export` wrote.
    """

    def __init__(self, model: Path | bytes, threads: int = 1, name: str = "model.onnx") -> None:
        runtime = imported("onnxruntime")
        self._name = name if isinstance(model, bytes) else str(model)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        content = model if isinstance(model, bytes) else model.read_bytes()
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self._brief = runtime.RunOptions()
            self._brief.only_execute_path_to_fetches = True  # time constants are computed only on request
            self._brief.log_severity_level = 4
            description = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        except Exception as error:  # onnxruntime's own have no other common base
            raise ExportError(f"{self._name} is damaged or no ONNX model: {first_line(error)}") from error
        if description is None:
            raise ExportError(f"{self._name} was not written by ltc export")
        self.about = parsed(description.encode(), f"the description in {self._name}")
        require_description(self.about, f"the description in {self._name}")
        self._states: list[dict[str, Any]] = self.about["states"]
        self._nexts = [state["next"] for state in self._states]
        self._require_interface()

    def _require_interface(self) -> None:
        """Check the graph's inputs and outputs against the description."""
        expected: dict[str, tuple[str, list[int]]] = {
            "token": ("tensor(int64)", []),
            "elapsed": ("tensor(float)", []),
        }
        expected |= {state["name"]: ("tensor(float)", state["shape"]) for state in self._states}
        inputs = {item.name: (item.type, list(item.shape)[1:]) for item in self._session.get_inputs()}
        outputs = {item.name for item in self._session.get_outputs()}
        needed = {"logits", *self._nexts, *self.about["time_constants"]}
        if inputs != expected or len(expected) != len(self._states) + 2 or not needed <= outputs:
            raise ExportError(f"{self._name} is damaged: inputs and outputs are not those of its description")

    def initial_state(self, batch: int = 1) -> dict[str, np.ndarray]:
        """The state before the first token of `batch` sequences."""
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
        """Read one token of each sequence: logits of the next (batch, vocabulary), and the state after it.

        Args:
            tokens: Ids, int64, (batch,).
            state: State before the token.
            elapsed: Time from this token to the next, float32, (batch,); 1 everywhere if None.
        """
        logits, *after = self._run(["logits", *self._nexts], tokens, state, elapsed, self._brief)
        return logits, {item["name"]: value for item, value in zip(self._states, after, strict=True)}

    def observe(
        self, tokens: np.ndarray, state: dict[str, np.ndarray], elapsed: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], list[np.ndarray]]:
        """As `step`, and the time constant of every neuron in tokens, (batch, neurons) a layer."""
        names = ["logits", *self._nexts, *self.about["time_constants"]]
        logits, *rest = self._run(names, tokens, state, elapsed, None)
        after = {item["name"]: value for item, value in zip(self._states, rest, strict=False)}
        return logits, after, rest[len(self._states) :]

    def _run(
        self, names: list[str], tokens: np.ndarray, state: dict[str, np.ndarray], elapsed: Any, options: Any
    ) -> list[np.ndarray]:
        time_passed = np.ones(len(tokens), np.float32) if elapsed is None else elapsed
        try:
            results = self._session.run(names, {"token": tokens, "elapsed": time_passed, **state}, options)
        except Exception as error:  # see above
            raise ExportError(f"{self._name} cannot be run: {first_line(error)}") from error
        if results[0].shape != (len(tokens), self.about["vocab_size"]):
            raise ExportError(f"{self._name} is damaged: its logits are of shape {results[0].shape}")
        return list(results)


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
