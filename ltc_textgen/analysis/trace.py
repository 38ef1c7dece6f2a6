"""A trace: tokens, time constants, states and surprise of a network on a text, recorded in one pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ltc_textgen.analysis.neurons import Neuron, checked_neurons
from ltc_textgen.analysis.reading import observe_text
from ltc_textgen.analysis.trace_file import TYPES, Layout, new_arrays, open_arrays
from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.layers.base import Elapsed, broadcast_elapsed
from ltc_textgen.model.network import CHUNK, LiquidNetwork
from ltc_textgen.model.text_state import TextState
from ltc_textgen.shapes import Float, Int, Tensor

FORMAT = "1"


@dataclass(frozen=True)
class Trace:
    """What a network did at every token of a text. The arrays may be memory-mapped.

    Args:
        ids: Token ids.
        pieces: What each token writes; joined, they are the text. Empty where a token is a part of a character.
        surprise: -ln p of each token given those before it, in nats; NaN for a first token without a context.
        tau: Time constant of every neuron after each token, in tokens, one array per layer; it may be infinite.
        states: State of every neuron after each token, one array per layer.
        elapsed: Time from each token to the next.
        model: Fingerprint of the network.
    """

    ids: Int[np.ndarray, " T"]
    pieces: list[str]
    surprise: Float[np.ndarray, " T"]
    tau: tuple[Float[np.ndarray, "T N"], ...]
    states: tuple[Float[np.ndarray, "T N"], ...]
    elapsed: Float[np.ndarray, " T"]
    model: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> list[int]:
        """N of every layer."""
        return [layer.shape[1] for layer in self.tau]

    @property
    def text(self) -> str:
        """The text that its tokens write."""
        return "".join(self.pieces)

    @property
    def loss(self) -> float:
        """Mean surprise, in nats per token."""
        return float(np.nanmean(self.surprise, dtype=np.float64))

    def first(self, tokens: int) -> "Trace":
        """The trace of the first tokens alone."""
        tau, states = (tuple(layer[:tokens] for layer in layers) for layers in (self.tau, self.states))
        small = self.ids[:tokens], self.pieces[:tokens], self.surprise[:tokens]
        return Trace(*small, tau, states, self.elapsed[:tokens], self.model)

    def series(self, neuron: Neuron | str, feature: str = "state") -> Float[np.ndarray, " T"]:
        """One neuron over the text.

        Args:
            neuron: Its name.
            feature: "state", "tau" or "log_tau".

        Raises:
            UsageError: If there is no such neuron or feature.
        """
        ((layer, index),) = checked_neurons([neuron], self.sizes)
        return self.features(layer, feature)[:, index]

    def features(self, layer: int, feature: str) -> Float[np.ndarray, "T N"]:
        """A layer over the text. Arguments and errors as in `series`."""
        if feature == "state":
            return self.states[layer]
        if feature in ("tau", "log_tau"):
            return self.tau[layer] if feature == "tau" else np.log(self.tau[layer])
        raise UsageError(f"feature {feature!r}: expected state, tau or log_tau")

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            LTCError: If there is no space or no permission.
        """
        arrays = {"ids": self.ids, "surprise": self.surprise, "elapsed": self.elapsed, **_written(self.pieces)}
        for number, (tau, states) in enumerate(zip(self.tau, self.states, strict=True)):
            arrays |= {f"tau.{number}": tau, f"states.{number}": states}
        codes = {dtype: code for code, dtype in TYPES.items()}
        layout = {name: (codes[array.dtype], array.shape) for name, array in arrays.items()}
        with new_arrays(Path(path), layout, _metadata(self.model)) as file:
            for name, array in arrays.items():
                file[name][...] = array

    @classmethod
    def load(cls, path: Path | str) -> "Trace":
        """Map a file that `save` or `trace` wrote; the large arrays stay on disk.

        Raises:
            ArtifactError: If it is missing, damaged, or no trace; one line.
        """
        path = Path(path)
        arrays, metadata = open_arrays(path)
        if metadata.get("kind") != "ltc trace" or metadata.get("format") != FORMAT:
            raise ArtifactError(f"{path} is not a trace of this version")
        count = sum(name.startswith("tau.") for name in arrays)
        try:
            tokens, names = len(arrays["ids"]), [f"{kind}.{i}" for i in range(count) for kind in ("tau", "states")]
            if any(arrays[name].shape != (tokens, arrays[name].shape[-1]) for name in names):
                raise ValueError("arrays of different lengths")
            if any(arrays[name].shape != (tokens,) for name in ("surprise", "elapsed", "ends")) or not count:
                raise ValueError("arrays of different lengths")
            pieces = _read(arrays["text"], arrays["ends"])
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
        tau, states = (tuple(arrays[f"{kind}.{i}"] for i in range(count)) for kind in ("tau", "states"))
        small = {name: np.array(arrays[name]) for name in ("ids", "surprise", "elapsed")}
        return cls(pieces=pieces, tau=tau, states=states, model=metadata.get("model", ""), **small)


def trace(
    model: LiquidNetwork,
    text: str | Tensor,
    tokenizer: Any = None,
    *,
    state: TextState | None = None,
    elapsed: Elapsed = None,
    path: Path | str | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """Read a text once and record tokens, time constants, states and surprise.

    Args:
        model: Network, in any mode; there is no dropout.
        text: A text, or token ids (1, T).
        tokenizer: That of the run directory if None.
        state: What was read before the text.
        elapsed: Time from each token to the next: a number or (T,); 1 if None.
        path: Write the trace into this safetensors file while reading, and map it: for texts whose trace
            (8 bytes per token and neuron) does not fit into memory.
        chunk: Tokens read at once; the result does not depend on it.
        progress: Called with the tokens read and all tokens.

    Raises:
        UsageError: If the text has no tokens, there is no tokenizer, or a shape does not fit.
        LTCError: If the file cannot be written.
    """
    ids = model.token_ids(text, tokenizer)
    if len(ids) != 1:
        raise UsageError(f"trace: expected one text, got {len(ids)}")
    tokens = ids.shape[1]
    if isinstance(elapsed, Tensor) and elapsed.ndim == 1:
        elapsed = elapsed[None]
    time = broadcast_elapsed(elapsed, 1, tokens, ids.float())[0]
    pieces, fingerprint = token_pieces(ids[0].tolist(), tokenizer or model.tokenizer), model.fingerprint()
    small = {"ids": ids[0].cpu().numpy(), "elapsed": time.float().cpu().numpy(), **_written(pieces)}
    layout = _layout(model, tokens, len(small["text"]))
    with _arrays(path, layout, fingerprint) as arrays:
        for name, array in small.items():
            arrays[name][...] = array
        for part in observe_text(model, ids, state, time, chunk=chunk):
            rows = slice(part.start, part.stop)
            arrays["surprise"][rows] = part.surprise.cpu().numpy()
            for number, seen in enumerate(part.layers):
                arrays[f"tau.{number}"][rows] = seen.tau[0].float().cpu().numpy()
                arrays[f"states.{number}"][rows] = seen.states[0].float().cpu().numpy()
            if progress:
                progress(part.stop, tokens)
    if path is not None:
        return Trace.load(path)
    tau, states = (tuple(arrays[f"{kind}.{i}"] for i in range(len(model.layers))) for kind in ("tau", "states"))
    small_ones = {name: arrays[name] for name in ("ids", "surprise", "elapsed")}
    return Trace(pieces=pieces, tau=tau, states=states, model=fingerprint, **small_ones)


def token_pieces(ids: list[int], tokenizer: Any) -> list[str]:
    """What each token writes; the ids themselves without a tokenizer of this package."""
    if not callable(getattr(tokenizer, "stream", None)):
        return [f"{index} " for index in ids]
    stream = tokenizer.stream()
    pieces = [stream.push(index) for index in ids]
    pieces[-1] += stream.flush()
    return pieces


def _layout(model: LiquidNetwork, tokens: int, size: int) -> Layout:
    layout: dict[str, tuple[str, tuple[int, ...]]] = {"ids": ("I64", (tokens,)), "ends": ("I64", (tokens,))}
    layout |= {"surprise": ("F32", (tokens,)), "elapsed": ("F32", (tokens,)), "text": ("U8", (size,))}
    for number, layer in enumerate(model.stack()):
        for kind in ("tau", "states"):
            layout[f"{kind}.{number}"] = ("F32", (tokens, layer.cell.hidden_size))
    return layout


def _arrays(path: Path | str | None, layout: Layout, model: str) -> AbstractContextManager[dict[str, np.ndarray]]:
    if path is not None:
        return new_arrays(Path(path), layout, _metadata(model))
    return nullcontext({name: np.empty(shape, TYPES[kind]) for name, (kind, shape) in layout.items()})


def _metadata(model: str) -> dict[str, str]:
    return {"kind": "ltc trace", "format": FORMAT, "model": model}


def _written(pieces: list[str]) -> dict[str, np.ndarray]:
    """The text as UTF-8 bytes, and where each token's text ends in them."""
    encoded = [piece.encode() for piece in pieces]
    ends = np.cumsum([len(piece) for piece in encoded], dtype=np.int64)
    return {"text": np.frombuffer(b"".join(encoded), np.uint8), "ends": ends}


def _read(text: np.ndarray, ends: np.ndarray) -> list[str]:
    content, stops = text.tobytes(), [0, *ends.tolist()]
    return [content[start:stop].decode() for start, stop in pairwise(stops)]
