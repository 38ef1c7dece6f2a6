"""Where in a text a neuron is extreme."""

from dataclasses import dataclass

import numpy as np

from ltc_textgen.analysis.neurons import Neuron
from ltc_textgen.analysis.trace import Trace

CONTEXT = 40
"""Characters, about, that are shown on each side of a place."""


@dataclass(frozen=True)
class Place:
    """A token at which a neuron is extreme.

    Args:
        token: Its position in the text.
        value: Of the neuron after the token.
        before: Text before the token.
        piece: What the token writes.
        after: Text after it.
    """

    token: int
    value: float
    before: str
    piece: str
    after: str


def top(
    trace: Trace,
    neuron: Neuron | str,
    feature: str = "state",
    *,
    count: int = 20,
    apart: int = 20,
    largest: bool = True,
) -> list[Place]:
    """The places at which a neuron is largest, or smallest; of equal ones the earliest comes first.

    Args:
        trace: Of a text.
        neuron: Its name.
        feature: "state", "tau" or "log_tau".
        count: Places at most.
        apart: Tokens, at least, between two places: a neuron that stays high would fill the list with one place.
        largest: False for the smallest values.

    Raises:
        UsageError: If there is no such neuron or feature.
    """
    values = np.asarray(trace.series(neuron, feature))
    order = np.argsort(-values if largest else values, kind="stable")
    free, places = np.ones(len(values), dtype=bool), list[Place]()
    for token in order.tolist():
        if len(places) == count:
            break
        if free[token]:
            free[max(0, token - apart + 1) : token + apart] = False
            places.append(_place(trace, token, float(values[token])))
    return places


def _place(trace: Trace, token: int, value: float) -> Place:
    before = "".join(trace.pieces[max(0, token - CONTEXT) : token])[-CONTEXT:]
    after = "".join(trace.pieces[token + 1 : token + 1 + CONTEXT])[:CONTEXT]
    return Place(token, value, before, trace.pieces[token], after)
