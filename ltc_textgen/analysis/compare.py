"""Where two readings differ inside the network, and for how long."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ltc_textgen.analysis.interventions import tau_bands
from ltc_textgen.analysis.trace import Trace, trace
from ltc_textgen.errors import UsageError
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.shapes import Float, Tensor


@dataclass(frozen=True)
class Comparison:
    """Distance of the states of two readings at every token: the root mean square over neurons.

    Args:
        layers: Of each layer, (T,) each.
        bands: Of the neurons in each band of the median time constant, shortest first, (T,) each.
        surprise: Surprise of the first reading less that of the second, (T,).
    """

    layers: list[Float[np.ndarray, " T"]]
    bands: list[Float[np.ndarray, " T"]]
    surprise: Float[np.ndarray, " T"]


def compare(
    model: LiquidNetwork,
    a: str | Tensor,
    b: str | Tensor,
    then: str | Tensor | None = None,
    tokenizer: Any = None,
    *,
    bands: int = 4,
) -> Comparison:
    """Compare the states after two texts, token by token, or while a third is read after either.

    Args:
        model: Network, in any mode.
        a: A text, or token ids (1, T).
        b: Another.
        then: What follows both. If given, the states are compared while it is read, and how the distance falls shows
            how the influence of a or b decays; if not, the states after each token of a and b are compared, up to the
            end of the shorter.
        tokenizer: That of the run directory if None.
        bands: How many bands of neurons.

    Raises:
        UsageError: If a text has no tokens, there is no tokenizer, or there are more bands than neurons.
    """
    if then is None:
        first, second = (trace(model, text, tokenizer) for text in (a, b))
    else:
        first, second = (trace(model, then, tokenizer, state=model.read(text, tokenizer)) for text in (a, b))
    tokens = min(len(first), len(second))
    squares = [
        (x[:tokens].astype(np.float64) - y[:tokens]) ** 2 for x, y in zip(first.states, second.states, strict=True)
    ]
    return Comparison(
        [np.sqrt(layer.mean(axis=1)) for layer in squares],
        [np.sqrt(_of_band(squares, first, number, bands)) for number in range(bands)],
        first.surprise[:tokens] - second.surprise[:tokens],
    )


def _of_band(squares: list[np.ndarray], seen: Trace, number: int, bands: int) -> Float[np.ndarray, " T"]:
    neurons = tau_bands(seen, bands)[number]
    return np.stack([squares[neuron.layer][:, neuron.number] for neuron in neurons], axis=1).mean(axis=1)


def state_distance(model: LiquidNetwork, a: Any, b: Any) -> list[float]:
    """Root mean square difference of the neurons of two text states, one number per layer.

    Args:
        model: Network that has read both texts.
        a: A `TextState` of one text.
        b: Another.

    Raises:
        UsageError: If a state is of another network, or of several texts.
    """
    for state in (a, b):
        state.require_model(model)
        if state.batch_size != 1:
            raise UsageError(f"state distance: expected states of one text, got one of {state.batch_size}")
    pairs = zip(a.liquid.neurons, b.liquid.neurons, strict=True)
    return [float(torch.sqrt(((x - y).double() ** 2).mean())) for x, y in pairs]
