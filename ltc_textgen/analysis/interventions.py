"""What the prediction loses when a neuron is ablated or clamped: interventions, not correlations.

A clamped neuron has the given state after every token, whatever its equation says; the rest of the network sees that
state and computes as usual. Clamping neurons to their own trajectory changes nothing, to the bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ltc_textgen.analysis.half_lives import MOST_ROWS
from ltc_textgen.analysis.neurons import Neuron, checked_neurons
from ltc_textgen.analysis.reading import Moves, observe_text
from ltc_textgen.analysis.trace import Trace
from ltc_textgen.errors import UsageError
from ltc_textgen.layers.base import LiquidLayer, state_dtype
from ltc_textgen.layers.diagonal import DiagonalLTC
from ltc_textgen.model.blocks import Trajectory, own_trajectory
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.text_state import TextState
from ltc_textgen.shapes import Float, Int, Tensor

How = Literal["mean", "zero"]


@dataclass(frozen=True)
class Mean:
    """A change of the loss, in nats per token.

    Args:
        change: Mean over tokens; above zero where the intervention harms.
        error: Standard error of that mean, with tokens taken as independent.
        tokens: How many.
    """

    change: float
    error: float
    tokens: int


@dataclass(frozen=True)
class Effect:
    """What an intervention did to the prediction of every token.

    Args:
        before: Surprise of each token without it, in nats; NaN where nothing was predicted.
        after: With it.
    """

    before: Float[np.ndarray, " T"]
    after: Float[np.ndarray, " T"]

    @property
    def change(self) -> Float[np.ndarray, " T"]:
        """By how much the surprise of each token rose."""
        return self.after - self.before

    @property
    def mean(self) -> Mean:
        """The change over all tokens."""
        return _mean(self.change)

    def by(self, groups: Float[np.ndarray, " T"] | Int[np.ndarray, " T"]) -> dict[float, Mean]:
        """The change in each group of tokens.

        Args:
            groups: The group of each predicted token, such as a label or a band; NaN or below 0 for none.

        Raises:
            UsageError: If there is not one group for each token.
        """
        if groups.shape != self.before.shape:
            raise UsageError(f"groups: expected {self.before.shape}, got {groups.shape}")
        values = np.asarray(groups, dtype=np.float64)
        return {float(one): _mean(self.change[values == one]) for one in np.unique(values[values >= 0])}


def clamp(
    model: LiquidNetwork,
    trace: Trace,
    values: Mapping[Neuron | str, float | Float[np.ndarray, " T"]],
    state: TextState | None = None,
) -> Effect:
    """Fix the state of neurons after every token, and score the text.

    Args:
        model: Network that the trace is of.
        trace: Of a text.
        values: For each neuron a value, or one for each token, such as `trace.series("L2N117")`.
        state: What was read before the text, if anything was.

    Raises:
        UsageError: If there is no neuron, one does not exist, the values have another length or are not finite, or
            the trace is of another network.
    """
    neurons = checked_neurons(values, trace.sizes)
    if trace.model != model.fingerprint():
        raise UsageError("clamp: the trace is of another network, or this one was trained since: trace the text again")
    wanted = np.empty((len(trace), len(neurons)), dtype=np.float32)
    for column, (neuron, value) in enumerate(zip(neurons, values.values(), strict=True)):
        if np.ndim(value) and np.shape(value) != (len(trace),):
            raise UsageError(
                f"clamp: {neuron}: expected a value for each of {len(trace)} tokens, got {np.shape(value)}"
            )
        wanted[:, column] = value
    if not np.isfinite(wanted).all():
        raise UsageError("clamp: the values must be finite")
    ids, time = torch.from_numpy(np.array(trace.ids))[None], torch.from_numpy(np.array(trace.elapsed))
    device = model.embed_tokens.weight.device
    chunks = observe_text(
        model, ids, state, time.to(device), _moves(neurons, torch.from_numpy(wanted).to(device), trace)
    )
    after = np.concatenate([part.surprise.cpu().numpy() for part in chunks])
    return Effect(np.array(trace.surprise), after)


def ablate(
    model: LiquidNetwork,
    trace: Trace,
    neurons: Iterable[Neuron | str],
    how: How = "mean",
    state: TextState | None = None,
) -> Effect:
    """Silence neurons, and score the text.

    Args:
        model: Network that the trace is of.
        trace: Of a text.
        neurons: Their names.
        how: "mean": each is held at its mean over the text, so that only its variation is removed; "zero": each is
            held at zero, which is often a state that does not occur in training.
        state: What was read before the text, if anything was.

    Raises:
        UsageError: As `clamp`, and if `how` is unknown.
    """
    if how not in ("mean", "zero"):
        raise UsageError(f"ablate: how = {how!r}: expected mean or zero")
    chosen = checked_neurons(neurons, trace.sizes)
    if how == "zero":
        return clamp(model, trace, dict.fromkeys(chosen, 0.0), state)
    means = {layer: trace.states[layer].mean(axis=0, dtype=np.float64) for layer in {one.layer for one in chosen}}
    return clamp(model, trace, {neuron: float(means[neuron.layer][neuron.number]) for neuron in chosen}, state)


def tau_bands(trace: Trace, count: int) -> list[list[Neuron]]:
    """All neurons in bands of equal size by their median time constant, shortest first.

    Raises:
        UsageError: If there are more bands than neurons, or none.
    """
    total = sum(trace.sizes)
    if not 1 <= count <= total:
        raise UsageError(f"bands: expected 1 to {total}, got {count}")
    step = max(1, -(-len(trace) // MOST_ROWS))
    medians = np.concatenate([np.median(layer[::step], axis=0) for layer in trace.tau])
    names = [Neuron(layer, index) for layer, size in enumerate(trace.sizes) for index in range(size)]
    order = np.argsort(medians, kind="stable")
    return [[names[index] for index in part.tolist()] for part in np.array_split(order, count)]


def quantile_bands(values: Float[np.ndarray, " T"], count: int) -> Int[np.ndarray, " T"]:
    """Number of the band of each value, lowest first, of bands with about equally many; -1 where it is NaN.

    >>> quantile_bands(np.array([5.0, 1.0, np.nan, 9.0]), 3).tolist()
    [1, 0, -1, 2]
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.full(values.shape, -1)
    edges = np.quantile(known, np.arange(1, count) / count)
    return np.where(np.isnan(values), -1, np.searchsorted(edges, np.nan_to_num(values), side="left"))


def routing(
    model: LiquidNetwork, trace: Trace, groups: Int[np.ndarray, " T"], bands: int = 4, how: How = "mean"
) -> list[dict[float, Mean]]:
    """Which time constants carry which tokens: the loss of each group of tokens without each band of neurons.

    With `groups = quantile_bands(word_frequency(trace.pieces), 3)` it is the experiment of the source: words of low
    frequency lose most without the slow units of an LSTM.

    Args:
        model: Network that the trace is of.
        trace: Of a text.
        groups: The group of each token; below 0 for none.
        bands: Bands of equally many neurons by median time constant, shortest first.
        how: As in `ablate`.

    Returns:
        For each band the change of the loss in each group.

    Source:
        Mahto, Vo, Turek, Huth 2021, arXiv:2009.12727, section 4.3.
    """
    return [ablate(model, trace, band, how).by(groups) for band in tau_bands(trace, bands)]


def _moves(neurons: Sequence[Neuron], wanted: Float[Tensor, "T N"], trace: Trace) -> Moves:
    columns = [[i for i, one in enumerate(neurons) if one.layer == layer] for layer in range(len(trace.sizes))]
    indices = [torch.tensor([neurons[i].number for i in of], device=wanted.device) for of in columns]

    def at(start: int, stop: int) -> list[Trajectory]:
        return [
            _clamped(index, wanted[start:stop, of]) if of else own_trajectory
            for index, of in zip(indices, columns, strict=True)
        ]

    return at


def _clamped(index: Int[Tensor, " N"], values: Float[Tensor, "T N"]) -> Trajectory:
    """The trajectory of a layer with some neurons clamped to `values`."""

    def move(cell: LiquidLayer, u: Tensor, x: Tensor, elapsed: Tensor) -> Tensor:
        if isinstance(cell, DiagonalLTC):  # its neurons are independent of each other
            own = own_trajectory(cell, u, x, elapsed).clone()
            own[:, :, index] = values.to(own.dtype)
            return own
        drive, states = cell.project(u), list[Tensor]()
        dtype = state_dtype(drive.dtype)
        drive, x = drive.to(dtype), x.to(dtype)
        for t in range(u.shape[1]):
            _, x = cell.scan(drive[:, t : t + 1], x, elapsed[:, t : t + 1].to(dtype))
            x = x.clone()
            x[:, index] = values[t].to(dtype)
            states.append(x)
        return torch.stack(states, dim=1)

    return move


def _mean(change: Float[np.ndarray, " T"]) -> Mean:
    known = change[np.isfinite(change)].astype(np.float64)
    error = known.std(ddof=1) / len(known) ** 0.5 if len(known) > 1 else float("nan")
    return Mean(float(known.mean()) if len(known) else float("nan"), float(error), len(known))
