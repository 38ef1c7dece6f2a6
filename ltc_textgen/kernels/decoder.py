"""A network of liquid blocks that reads and writes tokens without PyTorch: many tokens per call, weights packed once.

What it computes is what `model.LiquidTimeConstantNetwork` with blocks of `blocks.LiquidBlock` and `head.FullHead`
computes, and what `generation.sampling` then does with the logits. Source: csrc/decoder.cpp. Its arguments are plain
tensors; `generation.native` takes them from a model.
"""

import ctypes
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.autograd import address, codes_of, dense, room
from ltc_textgen.kernels.library import LIBRARY, SMALL, WHY_NOT, pointers, threads_for
from ltc_textgen.kernels.liquid_block import BlockWeights
from ltc_textgen.shapes import Float, Int, Tensor
from ltc_textgen.solvers import Method

BUSY = 1 << 18
"""Multiplications per token, over all rows, below which a second thread costs more than it saves."""


class _Block(ctypes.Structure):
    _fields_ = (
        *pointers("norm", "taps", "taps_bias", "input", "input_bias", "feedback", "reversal", "capacitance", "leak"),
        *pointers("gate", "gate_bias", "out"),
        ("epsilon", ctypes.c_float),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("D", "N", "K", "L", "words", "V", "steps")),
        ("solver", ctypes.c_int),
        *((name, ctypes.c_bool) for name in ("adaptive", "bytes")),
        ("blocks", ctypes.POINTER(_Block)),
        *pointers("embedding", "norm", "head", "head_bias"),
        ("epsilon", ctypes.c_float),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "given", "count")),
        ("threads", ctypes.c_int),
        ("h", ctypes.c_float),
        *pointers("ids", "neurons", "columns", "logits", "uniform", "seen"),
        *((name, ctypes.c_float) for name in ("temperature", "top_p", "min_p", "penalty")),
        ("top_k", ctypes.c_int64),
        ("forbidden", ctypes.c_int64),
        *pointers("stops"),
        ("stop_count", ctypes.c_int64),
        *pointers("tokens"),
        *((name, ctypes.c_int64) for name in ("done", "broken", "alone", "caution")),
    )


@dataclass(frozen=True)
class Weights:
    """Parameters of a network. `epsilons` are those of the blocks' norms and, last, of the final one."""

    blocks: Sequence[BlockWeights]
    embedding: Float[Tensor, "words D"]
    norm: Float[Tensor, " D"]
    head: Float[Tensor, "V D"]
    head_bias: Float[Tensor, " V"]
    epsilons: Sequence[float]


@dataclass(frozen=True)
class Choice:
    """How tokens are drawn; fields as in `config.SamplingConfig`, and

    Args:
        forbidden: A token that is never drawn; none if None.
        stops: Tokens after which a call returns, whichever row drew one.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    forbidden: int | None = None
    stops: Sequence[int] = field(default=())


class Drawn(NamedTuple):
    """What `Decoder.draw` gives.

    Args:
        tokens: Drawn tokens; fewer than asked for if a row drew a stop.
        neurons: State before the last of them, which no one has fed yet.
        columns: The same.
        broken: First row of which no further token can be drawn because its logits are NaN or infinite; None if all
            can.
    """

    tokens: Int[Tensor, "B _"]
    neurons: Float[Tensor, "L B N"]
    columns: Float[Tensor, "L B _ D"]
    broken: int | None


class Decoder:
    """A packed network.

    Args:
        weights: Its parameters, which are copied.
        method: How a token is integrated.
        step_size: Length of a sub-step in token time.
        int8: Keep the matrices as bytes, one scale per output: a quarter of the memory to read. Inputs of products
            are rounded to 16 bits then.

    Raises:
        UsageError: If the library was not built, or a tensor has another shape, dtype or device than it must.
        MemoryError: If there is no memory to pack into.
    """

    def __init__(self, weights: Weights, method: Method, *, step_size: float, int8: bool = False) -> None:
        if LIBRARY is None:
            raise UsageError(f"there are no CPU kernels here: {WHY_NOT}")
        if not weights.blocks or len(weights.epsilons) != len(weights.blocks) + 1:
            raise UsageError(f"weights: {len(weights.blocks)} blocks and {len(weights.epsilons)} epsilons do not fit")
        first = weights.blocks[0]
        self.L, self.N = len(weights.blocks), first.out.shape[-1]
        self.D, self.K = first.conv.shape
        self.words, self.V = weights.embedding.shape[0], weights.head.shape[0]
        if 0 in (self.N, self.D, self.K, self.words, self.V) or method.steps < 1:
            raise UsageError("weights: every size, and steps, must be 1 or more")
        self.step_size, self.int8 = step_size, int8
        self._alone = self._caution = 0  # see csrc/decoder.h
        D, N, K = self.D, self.N, self.K
        blocks = (_Block * self.L)()
        held: list[Tensor] = []  # what the addresses below point to
        for index, block in enumerate(weights.blocks):
            arrays = block.dense(D, N, K, f" of block {index}")
            held += arrays
            blocks[index] = _Block(*map(address, arrays), weights.epsilons[index])
        ends = [
            dense("embedding", weights.embedding, (self.words, D)),
            dense("norm", weights.norm, (D,)),
            dense("head", weights.head, (self.V, D)),
            dense("head_bias", weights.head_bias, (self.V,)),
        ]
        model = _Model(D, N, K, self.L, self.words, self.V, *codes_of(method), int8, blocks)
        model.embedding, model.norm, model.head, model.head_bias = map(address, ends)
        model.epsilon = weights.epsilons[-1]
        LIBRARY.ltc_decoder_new.restype = ctypes.c_void_p
        self._decoder = LIBRARY.ltc_decoder_new(ctypes.byref(model))
        if not self._decoder:
            raise MemoryError("no memory for the packed weights of a decoder")
        weakref.finalize(self, LIBRARY.ltc_decoder_free, ctypes.c_void_p(self._decoder))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices that every token multiplies by, embedding left out."""
        return (self.L * 4 * self.N * self.D + self.V * self.D) * (1 if self.int8 else 4)

    def read(
        self,
        ids: Int[Tensor, "B T"],
        neurons: Float[Tensor, "L B N"],
        columns: Float[Tensor, "L B _ D"],
        *,
        logits: bool = False,
        elapsed: float = 1.0,
    ) -> tuple[Float[Tensor, "B T V"] | None, Float[Tensor, "L B N"], Float[Tensor, "L B _ D"]]:
        """Read tokens: their logits if wanted, and the state after them.

        Args:
            ids: Token ids, int64.
            neurons: State before the first token; it is left as it is.
            columns: The same, for the convolutions.
            logits: Whether to compute what is predicted after each token.
            elapsed: Time from each token to the next, in token time.

        Raises:
            UsageError: If a shape, dtype, device or value does not fit; the message names expected and got.
        """
        call, after = self._call(ids, neurons, columns, elapsed, 0)
        result = room(*ids.shape, self.V) if logits else None
        call.logits = address(result)
        self._run(call)
        return result, *after

    def draw(
        self,
        ids: Int[Tensor, "B T"],
        neurons: Float[Tensor, "L B N"],
        columns: Float[Tensor, "L B _ D"],
        choice: Choice,
        count: int,
        uniform: Float[Tensor, "B _"] | None = None,
        seen: Tensor | None = None,
        *,
        elapsed: float = 1.0,
    ) -> Drawn:
        """Read tokens, then draw `count` of each row, reading each but the last.

        Args:
            ids: Token ids, int64.
            neurons: State before the first token; it is left as it is.
            columns: The same, for the convolutions.
            choice: How to draw.
            count: Tokens to draw, >= 1.
            uniform: Numbers in [0, 1), float64, one per token; needed unless the temperature is 0.
            seen: Tokens to penalize, (B, V) boolean; drawn tokens are added to it. Needed with a repetition penalty.
            elapsed: Time from each token to the next, in token time.

        Raises:
            UsageError: If a shape, dtype, device or value does not fit; the message names expected and got.
        """
        call, after = self._call(ids, neurons, columns, elapsed, count)
        B = ids.shape[0]
        if self.words < self.V:
            raise UsageError(f"a decoder that knows {self.words} tokens cannot read all of the {self.V} it may draw")
        if count < 1:
            raise UsageError(f"count: expected 1 or more, got {count}")
        self._check(choice)
        if choice.temperature > 0:
            if uniform is None:
                raise UsageError("uniform: expected numbers to draw with, got None")
            uniform = dense("uniform", uniform, (B, count), torch.float64)
            if not bool(((uniform >= 0) & (uniform < 1)).all()):
                raise UsageError("uniform: every number must be in [0, 1)")
            call.uniform = address(uniform)
        if choice.repetition_penalty != 1:
            if seen is None or seen.shape != (B, self.V) or seen.dtype != torch.bool or not seen.is_contiguous():
                raise UsageError(f"seen: expected a contiguous boolean tensor of {(B, self.V)}")
            call.seen = address(seen)
        tokens = torch.empty(B, count, dtype=torch.int64)
        stops = (ctypes.c_int64 * len(choice.stops))(*choice.stops)
        call.tokens, call.stops, call.stop_count = address(tokens), ctypes.addressof(stops), len(stops)
        call.temperature, call.top_k, call.top_p = choice.temperature, choice.top_k, choice.top_p
        call.min_p, call.penalty = choice.min_p, choice.repetition_penalty
        call.forbidden = -1 if choice.forbidden is None else choice.forbidden
        self._run(call)
        return Drawn(tokens[:, : call.done], *after, None if call.broken < 0 else call.broken)

    def _check(self, choice: Choice) -> None:
        bounds = {
            "temperature": choice.temperature >= 0 and math.isfinite(choice.temperature),
            "top_k": choice.top_k >= 0,
            "top_p": 0 < choice.top_p <= 1,
            "min_p": 0 <= choice.min_p <= 1,
            "repetition_penalty": choice.repetition_penalty > 0 and math.isfinite(choice.repetition_penalty),
            "forbidden": choice.forbidden is None or 0 <= choice.forbidden < self.V,
        }
        for name, fits in bounds.items():
            if not fits:
                raise UsageError(f"{name}: {getattr(choice, name)} is out of range")

    def _call(
        self, ids: Tensor, neurons: Tensor, columns: Tensor, elapsed: float, count: int
    ) -> tuple[_Call, tuple[Tensor, Tensor]]:
        if ids.ndim != 2 or 0 in ids.shape:
            raise UsageError(f"ids: expected (B, T) with B, T >= 1, got {tuple(ids.shape)}")
        B, T = ids.shape
        ids = dense("ids", ids, (B, T), torch.int64)
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= self.words:
            raise UsageError(f"ids: expected 0 to {self.words - 1}, got {low if low < 0 else high}")
        if not (elapsed >= 0 and math.isfinite(elapsed)):
            raise UsageError(f"elapsed: must be finite and >= 0, got {elapsed}")
        after = (
            dense("neurons", neurons, (self.L, B, self.N)).clone(),
            dense("columns", columns, (self.L, B, self.K - 1, self.D)).clone(),
        )
        work = B * self.weight_bytes // (1 if self.int8 else 4)
        threads = threads_for(SMALL if work >= BUSY else 0)
        call = _Call(B, T, count, threads, self.step_size * elapsed, address(ids), *map(address, after))
        call.alone, call.caution = self._alone, self._caution
        call.keep = ids
        return call, after

    def _run(self, call: _Call) -> None:
        assert LIBRARY is not None
        if LIBRARY.ltc_decoder_run(ctypes.c_void_p(self._decoder), ctypes.byref(call)):
            raise MemoryError("no memory for the workspace of a decoder")
        self._alone, self._caution = call.alone, call.caution
