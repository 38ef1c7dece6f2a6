"""A network of liquid blocks that reads and writes tokens without PyTorch: many tokens per call, weights packed once.

What it computes is what `model.network.LiquidNetwork` with blocks of `model.blocks.LiquidBlock` and a
`model.heads.FullHead` computes, and what `generation.sampling` then does with the logits. Source: csrc/decoder.cpp.
This is the packed network; `decoder_rows` has the rows that it reads and writes, and `generation.native` takes the
weights from a model.
"""

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.autograd import address, codes_of, dense
from ltc_textgen.kernels.library import LIBRARY, SMALL, WHY_NOT, pointers, threads_for
from ltc_textgen.kernels.liquid_block import BlockWeights
from ltc_textgen.shapes import Float, Tensor
from ltc_textgen.solvers import Method

BUSY = 1 << 18
"""Multiplications per step, over all rows, below which a second thread costs more than it saves."""

MOST_ROWS = 64
"""Tokens that one step takes through the network; kMostRows in csrc/worker.h."""


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
        *((name, ctypes.c_int64) for name in ("rows", "slots", "best", "threads")),
        *pointers("options", "work", "neurons", "columns"),
        *((name, ctypes.c_int64) for name in ("alone", "caution")),
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

    def run(
        self,
        options: np.ndarray,
        work: np.ndarray,
        neurons: Float[Tensor, "L S N"],
        columns: Float[Tensor, "L S _ D"],
        *,
        best: int,
    ) -> None:
        """Do some work, in place; `decoder_rows.Rows` makes these arrays and answers for what they point to.

        Args:
            options: One record of `decoder_rows.OPTIONS` per slot.
            work: One record of `decoder_rows.WORK` per row, which says where the results go.
            neurons: The states of all slots.
            columns: The same, of the convolutions.
            best: Length of the lists of likeliest tokens.

        Raises:
            MemoryError: If there is no memory to work in.
        """
        assert LIBRARY is not None
        wide = max(len(work), min(int(work["given"].max()), MOST_ROWS))
        busy = wide * self.weight_bytes // (1 if self.int8 else 4) >= BUSY
        call = _Call(len(work), neurons.shape[1], best, threads_for(SMALL if busy else 0))
        call.options, call.work = options.ctypes.data, work.ctypes.data
        call.neurons, call.columns = address(neurons), address(columns)
        call.alone, call.caution = self._alone, self._caution
        if LIBRARY.ltc_decoder_run(ctypes.c_void_p(self._decoder), ctypes.byref(call)):
            raise MemoryError("no memory for the workspace of a decoder")
        self._alone, self._caution = call.alone, call.caution
