"""The rows that a native decoder reads and writes, each with a state and options of its own.

A row lives in a slot from `Rows.join` to `Rows.leave`. A call of `Rows.run` does the work of any of them together: some
read a text while others write. A row does not depend on the other rows of a call, on how its text is split into
calls, or on the number of threads: it has the same bits alone.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.autograd import dense
from ltc_textgen.kernels.decoder import Decoder
from ltc_textgen.shapes import Float, Tensor

CONTEXT = 16
"""Numbers of a Context of csrc/memory.h."""

MOST_LIKELIEST = 20
"""Longest list of likeliest tokens."""

OPTIONS = np.dtype(
    [
        *((name, np.float32) for name in ("h", "temperature", "top_p", "min_p", "repetition", "presence", "frequency")),
        ("top_k", np.int32),
        *((name, np.int64) for name in ("bias_count", "stop_count", "hold_count", "watch_count")),
        *((name, np.uint64) for name in ("bias_ids", "bias", "stops", "holds", "watched", "seen", "counts")),
        *((name, np.uint64) for name in ("mixture", "context")),
    ],
    align=True,
)
"""DecoderOptions of csrc/decoder.h; the last nine are addresses."""

WORK = np.dtype(
    [
        *((name, np.int64) for name in ("slot", "given", "count")),
        *((name, np.uint64) for name in ("ids", "targets", "uniform", "tokens", "logits")),
        *((name, np.uint64) for name in ("chances", "best_ids", "best", "watched")),
        *((name, np.int64) for name in ("done", "end")),
    ],
    align=True,
)
"""DecoderWork of csrc/decoder.h."""

HOLD = np.dtype([("layer", np.int32), ("neuron", np.int32), ("value", np.float32), ("factor", np.float32)], align=True)
"""DecoderHold of csrc/decoder.h."""

End = Literal["count", "stop", "broken"]
ENDS: tuple[End, ...] = ("count", "stop", "broken")


@dataclass(frozen=True)
class Choice:
    """How a row draws its tokens; fields as in `config.SamplingConfig`, and

    Args:
        temperature: 0 takes the likeliest token.
        presence_penalty: Subtracted from the logits of tokens that the row has drawn.
        frequency_penalty: The same, times how often it has drawn them.
        logit_bias: Added to the logits of these tokens, before everything else.
        forbidden: Tokens that are never drawn.
        stops: Tokens that end the row once drawn.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    forbidden: Sequence[int] = ()
    stops: Sequence[int] = ()

    def validate(self, vocabulary: int) -> None:
        """Check every field.

        Raises:
            UsageError: Naming a field that is out of range.
        """
        tokens = {"logit_bias": list(self.logit_bias), "forbidden": self.forbidden, "stops": self.stops}
        finite = (*self.logit_bias.values(), self.presence_penalty, self.frequency_penalty)
        bounds = {
            "temperature": self.temperature >= 0 and math.isfinite(self.temperature),
            "top_k": 0 <= self.top_k < 1 << 31,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty),
            "presence_penalty": math.isfinite(self.presence_penalty),
            "frequency_penalty": math.isfinite(self.frequency_penalty),
            "logit_bias": all(map(math.isfinite, finite)),
        }
        bounds |= {
            name: bounds.get(name, True) and all(0 <= i < vocabulary for i in ids) for name, ids in tokens.items()
        }
        for name, fits in bounds.items():
            if not fits:
                raise UsageError(f"{name}: {getattr(self, name)} is out of range")


class Hold(NamedTuple):
    """A neuron that is not left to itself.

    Args:
        layer: Index of its block, from 0.
        neuron: Index in the block.
        value: Its state after every token; None leaves it to the network.
        factor: Its time constant is so many times what it would be; > 0.
    """

    layer: int
    neuron: int
    value: float | None = None
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Work:
    """What one row does in a call: read `ids`, then draw `count` tokens, reading each but the last.

    Args:
        slot: Slot of the row.
        ids: Tokens to read, at least one; int64 if an array. To continue drawing, the token drawn last.
        count: Tokens to draw; fewer are drawn if one is a stop.
        uniform: (count,), float64: the row's own random numbers in [0, 1). Not needed at temperature 0.
        logprobs: Whether to compute log-probabilities, and the likeliest tokens if the call asks for them.
        targets: The token after each of `ids`, -1 where it is not known: `logprobs` has them too. With a `count` the
            last one is not used, for it is drawn.
        logits: Whether to return the logits after each of `ids`.
    """

    slot: int
    ids: "Sequence[int] | np.ndarray"
    count: int = 0
    uniform: "Sequence[float] | np.ndarray | None" = None
    logprobs: bool = False
    targets: "Sequence[int] | np.ndarray | None" = None
    logits: bool = False


class Written(NamedTuple):
    """What became of a row in a call. A position is a token that was read; one after the other, `ids` first.

    Args:
        tokens: What was drawn.
        end: count if all was done, stop if a stop was drawn (the last of `tokens`), broken if no further token can be
            drawn because its logits are NaN or infinite.
        logprobs: Natural logarithm of the model's own probability (with its n-gram memory, if the row has one, and
            without temperature, penalties and bias) of the
            token that follows each position; NaN where that is not known. That of drawn token i stands at
            len(ids) - 1 + i. None if they were not asked for.
        likeliest: The likeliest tokens that could follow each position, (positions, best); where `logprobs` is NaN it
            means nothing.
        likeliest_logprobs: Their log-probabilities, in descending order.
        watched: Time constant C / G after each position, in token time, and state of the neurons that the row watches:
            (positions, neurons, 2). The token drawn last has not been read, and is not there.
        logits: (len(ids), V), if asked for.
    """

    tokens: np.ndarray
    end: End
    logprobs: np.ndarray | None
    likeliest: np.ndarray | None
    likeliest_logprobs: np.ndarray | None
    watched: np.ndarray | None
    logits: np.ndarray | None


class Rows:
    """Slots for the rows of a decoder.

    A row's state is that before the token that it reads next: a drawn token has not been read until it is in the `ids`
    of the next work. Not for several threads at a time.

        rows = Rows(decoder, 64)
        slot = rows.join(Choice(temperature=0.8, stops=(0,)), neurons, columns)
        [written] = rows.run([Work(slot, prompt, count=100, uniform=numbers, logprobs=True)], best=5)
        [more] = rows.run([Work(slot, written.tokens[-1:], count=100, uniform=other_numbers)])
        neurons, columns = rows.state(slot)
        rows.leave(slot)

    Args:
        decoder: The packed network.
        capacity: Number of slots.

    Attributes:
        neurons: States of all slots, (L, capacity, N).
        columns: The same, of the convolutions, (L, capacity, K - 1, D).
    """

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        if capacity < 1:
            raise UsageError(f"capacity: expected 1 or more, got {capacity}")
        self.decoder, self.capacity = decoder, capacity
        self.neurons: Float[Tensor, "L S N"] = torch.zeros(decoder.L, capacity, decoder.N)
        self.columns: Float[Tensor, "L S _ D"] = torch.zeros(decoder.L, capacity, decoder.K - 1, decoder.D)
        self._options = np.zeros(capacity, OPTIONS)
        self._held: list[dict[str, np.ndarray] | None] = [None] * capacity  # what the addresses of a slot point to
        self._mixing: list[object] = [None] * capacity
        self._free = list(reversed(range(capacity)))

    @property
    def free(self) -> int:
        """Number of slots without a row."""
        return len(self._free)

    def join(
        self,
        choice: Choice,
        neurons: Float[Tensor, "L N"],
        columns: Float[Tensor, "L _ D"],
        *,
        elapsed: float = 1.0,
        seen: Sequence[int] = (),
    ) -> int:
        """Give a row a slot.

        Args:
            choice: How it draws.
            neurons: State before its next token, which is copied.
            columns: The same, of the convolutions.
            elapsed: Time from each token to the next, in token time.
            seen: As in `see`.

        Returns:
            The slot.

        Raises:
            UsageError: If there is no slot, or an option is out of range.
        """
        if not self._free:
            raise UsageError(f"no slot is free: {self.capacity} rows are at work")
        if not (elapsed >= 0 and math.isfinite(elapsed)):
            raise UsageError(f"elapsed: must be finite and >= 0, got {elapsed}")
        d = self.decoder
        choice.validate(d.V)
        neurons, columns = dense("neurons", neurons, (d.L, d.N)), dense("columns", columns, (d.L, d.K - 1, d.D))
        slot = self._free.pop()
        self.neurons[:, slot], self.columns[:, slot] = neurons, columns
        self._options[slot] = np.zeros((), OPTIONS)
        self._held[slot] = {}
        o = self._options[slot]
        o["h"], o["temperature"], o["top_k"] = d.step_size * elapsed, choice.temperature, choice.top_k
        o["top_p"], o["min_p"], o["repetition"] = choice.top_p, choice.min_p, choice.repetition_penalty
        o["presence"], o["frequency"] = choice.presence_penalty, choice.frequency_penalty
        bias = {**choice.logit_bias, **dict.fromkeys(choice.forbidden, -math.inf)}
        self._set(slot, "bias_ids", np.fromiter(bias, np.int64), "bias_count")
        self._set(slot, "bias", np.fromiter(bias.values(), np.float32))
        self._set(slot, "stops", np.array(choice.stops, np.int64), "stop_count")
        if choice.repetition_penalty != 1:
            self._set(slot, "seen", np.zeros(d.V, np.uint8))
            self.see(slot, seen)
        if choice.presence_penalty or choice.frequency_penalty:
            self._set(slot, "counts", np.zeros(d.V, np.int32))
        return slot

    def leave(self, slot: int) -> None:
        """Free the slot of a row."""
        self._of(slot)
        self._held[slot] = self._mixing[slot] = None
        self._free.append(slot)

    def state(self, slot: int) -> tuple[Float[Tensor, "L N"], Float[Tensor, "L _ D"]]:
        """A copy of a row's neurons and columns."""
        self._of(slot)
        return self.neurons[:, slot].clone(), self.columns[:, slot].clone()

    def see(self, slot: int, tokens: "Sequence[int] | np.ndarray") -> None:
        """Name tokens of its prompt that the repetition penalty of a row applies to, as to those that it draws."""
        seen, ids = self._of(slot).get("seen"), np.asarray(tokens, np.int64)
        _require("seen", ids, 0, self.decoder.V - 1)
        if seen is not None:
            seen[ids] = 1

    def hold(self, slot: int, holds: Sequence[Hold]) -> None:
        """Hold neurons of a row from its next token on, in place of those held before.

        Raises:
            UsageError: If there is no such neuron, a value is not finite or a factor not > 0.
        """
        for hold in holds:
            self._require_neuron(hold.layer, hold.neuron)
            if not (hold.factor > 0 and math.isfinite(hold.factor) and math.isfinite(hold.value or 0.0)):
                raise UsageError(f"{hold}: expected a finite value and a factor > 0")
        records = [(h.layer, h.neuron, math.nan if h.value is None else h.value, h.factor) for h in holds]
        self._set(slot, "holds", np.array(records, HOLD), "hold_count")

    def watch(self, slot: int, neurons: Sequence[tuple[int, int]]) -> None:
        """Return time constant and state of these neurons, (layer, neuron), from the next call on.

        Raises:
            UsageError: If there is no such neuron.
        """
        for layer, neuron in neurons:
            self._require_neuron(layer, neuron)
        self._set(slot, "watched", np.array(neurons, np.int32).reshape(-1, 2), "watch_count")

    def mix(self, slot: int, mixture: ctypes.Structure | None, context: np.ndarray | None = None) -> None:
        """Mix an n-gram memory with the network's distribution from the next call on: log-probabilities and draws.

        Args:
            slot: Slot of the row.
            mixture: As csrc/mixture.cpp takes it, which must not change while the row has it; None for none.
            context: What the memory has read of the row's text, (1 + LONGEST,), uint32, which is copied.

        Raises:
            UsageError: If the context does not fit.
        """
        if mixture is None:
            self._of(slot).pop("context", None)
            self._options[slot]["mixture"] = self._options[slot]["context"] = 0
        else:
            if context is None or context.shape != (CONTEXT,) or context[0] >= CONTEXT:
                raise UsageError(f"context: expected ({CONTEXT},), a length below {CONTEXT} and as many tokens")
            self._set(slot, "context", np.array(context, np.uint32))
            self._options[slot]["mixture"] = ctypes.addressof(mixture)
        self._mixing[slot] = mixture

    def run(self, work: Sequence[Work], *, best: int = 0) -> list[Written]:
        """Do the work of some rows together.

        Args:
            work: At most one of each slot; rows that are not named keep their state. Work that draws costs a step of
                the call for each token; a row that only reads takes several tokens in a step.
            best: How many likeliest tokens to return with log-probabilities, 0 to 20.

        Returns:
            What became of each row, in the order of `work`.

        Raises:
            UsageError: If a value does not fit; the message says which.
        """
        if not 0 <= best <= MOST_LIKELIEST:
            raise UsageError(f"best: expected 0 to {MOST_LIKELIEST}, got {best}")
        if not work:
            return []
        call = _Call(self, work, min(best, self.decoder.V))
        self.decoder.run(self._options, call.table, self.neurons, self.columns, best=call.best)
        return [call.written(index) for index in range(len(work))]

    def options(self, slot: int) -> np.void:
        """The record of a slot that holds a row."""
        self._of(slot)
        record: np.void = self._options[slot]
        return record

    def _of(self, slot: int) -> dict[str, np.ndarray]:
        held = self._held[slot] if 0 <= slot < self.capacity else None
        if held is None:
            raise UsageError(f"slot: {slot} has no row")
        return held

    def _set(self, slot: int, name: str, array: np.ndarray, count: str = "") -> None:
        self._of(slot)[name] = array
        self._options[slot][name] = array.ctypes.data
        if count:
            self._options[slot][count] = len(array)

    def _require_neuron(self, layer: int, neuron: int) -> None:
        if not (0 <= layer < self.decoder.L and 0 <= neuron < self.decoder.N):
            raise UsageError(
                f"there is no neuron {neuron} of layer {layer}: "
                f"the network has {self.decoder.L} layers of {self.decoder.N}"
            )


class _Call:
    """The table of one call, and the arrays that it points to."""

    def __init__(self, rows: Rows, work: Sequence[Work], best: int) -> None:
        self._work, self.best, decoder = work, best, rows.decoder
        self._inputs_held: list[np.ndarray] = []
        self._watched = [int(rows.options(w.slot)["watch_count"]) for w in work]
        self.table = table = np.zeros(len(work), WORK)
        given, count = table["given"], table["count"]
        table["slot"] = [w.slot for w in work]
        given[:], count[:] = [len(w.ids) for w in work], [w.count for w in work]
        self._check(rows)
        positions = given + np.maximum(count, 1) - 1
        ids = self._inputs("ids", [w.ids for w in work], np.int64)
        _require("ids", ids, 0, decoder.words - 1)
        drawing = [w for w in work if w.count and rows.options(w.slot)["temperature"] > 0]
        self._uniform(drawing)
        following = [w for w in work if w.targets is not None]
        targets = self._inputs(
            "targets", [w.targets for w in following], np.int64, [w.targets is not None for w in work]
        )
        _require("targets", targets, -1, decoder.V - 1)
        wanted = np.array([w.logprobs for w in work])
        self._tokens = self._outputs("tokens", count, (), np.int64)
        self._chances = self._outputs("chances", positions * wanted, (), np.float32)
        self._best_ids = self._outputs("best_ids", positions * wanted * (best > 0), (best,), np.int32)
        self._best = self._outputs("best", positions * wanted * (best > 0), (best,), np.float32)
        self._logits = self._outputs("logits", given * [w.logits for w in work], (decoder.V,), np.float32)
        self._states = self._outputs("watched", positions * self._watched, (2,), np.float32)

    def _check(self, rows: Rows) -> None:
        slots = [w.slot for w in self._work]
        if len(set(slots)) < len(slots):
            raise UsageError("work: a slot occurs twice")
        words, V = rows.decoder.words, rows.decoder.V
        for w in self._work:
            if w.count < 0 or not len(w.ids):
                raise UsageError(f"work of slot {w.slot}: expected tokens to read and a count >= 0, got {w.count}")
            if w.count and words < V:
                raise UsageError(f"a decoder with embeddings of {words} tokens cannot read all of the {V} it may draw")
            if w.targets is not None and len(w.targets) != len(w.ids):
                raise UsageError(f"targets: expected {len(w.ids)}, one for each of ids, got {len(w.targets)}")

    def _uniform(self, drawing: Sequence[Work]) -> None:
        for w in drawing:
            if w.uniform is None or len(w.uniform) != w.count:
                got = None if w.uniform is None else len(w.uniform)
                raise UsageError(f"uniform: expected {w.count} numbers to draw with, got {got}")
        draws = {w.slot for w in drawing}
        where = [w.slot in draws for w in self._work]
        numbers = self._inputs("uniform", [w.uniform for w in drawing], np.float64, where)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < 1):
            raise UsageError("uniform: every number must be in [0, 1)")

    def _inputs(self, name: str, parts: Sequence, dtype: type, where: Sequence[bool] | None = None) -> np.ndarray:
        """Put arrays behind each other, and their addresses into the table."""
        flat = np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)])
        self._inputs_held.append(flat)  # the table has its address
        sizes = np.array([len(part) for part in parts], np.int64)
        rows = slice(None) if where is None else np.array(where, bool)
        self.table[name][rows] = flat.ctypes.data + flat.itemsize * (np.cumsum(sizes) - sizes)
        return flat

    def _outputs(
        self, name: str, sizes: np.ndarray, shape: tuple[int, ...], dtype: type
    ) -> tuple[np.ndarray, np.ndarray]:
        """Room for a result of every row, and its address in the table where it is not empty; and where it begins."""
        ends = np.cumsum(sizes)
        flat: np.ndarray = np.empty((int(ends[-1]), *shape), dtype)
        if np.issubdtype(dtype, np.floating):
            flat.fill(np.nan)
        begin = ends - sizes
        stride = flat.itemsize * math.prod(shape)
        self.table[name] = np.where(sizes > 0, flat.ctypes.data + stride * begin, 0)
        return flat, begin

    def written(self, index: int) -> Written:
        """The results of one row."""
        w, record = self._work[index], self.table[index]
        given, done, end = len(w.ids), int(record["done"]), ENDS[record["end"]]
        followed = given - 1 + done if w.count else given
        read = given + done - (1 if w.count and end != "broken" else 0)

        def cut(result: tuple[np.ndarray, np.ndarray], length: int) -> np.ndarray:
            flat, begin = result
            return flat[begin[index] : begin[index] + length]

        listed = w.logprobs and self.best
        watched = self._watched[index]
        return Written(
            cut(self._tokens, done),
            end,
            cut(self._chances, followed) if w.logprobs else None,
            cut(self._best_ids, followed) if listed else None,
            cut(self._best, followed) if listed else None,
            cut(self._states, read * watched).reshape(read, watched, 2) if watched else None,
            cut(self._logits, given) if w.logits else None,
        )


def _require(name: str, values: np.ndarray, low: int, high: int) -> None:
    if len(values) and not (low <= values.min() and values.max() <= high):
        wrong = int(values.min() if values.min() < low else values.max())
        raise UsageError(f"{name}: expected {low} to {high}, got {wrong}")
