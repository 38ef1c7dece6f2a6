"""Places where a neuron is extreme."""

import numpy as np
from analysis_networks import made_trace

from ltc_textgen.analysis import top


def seen(values: list[float], text: str = "abcdefghij") -> object:
    return made_trace(list(text), np.array(values)[:, None])


def test_the_order_is_stable_under_ties() -> None:
    trace = seen([1, 3, 3, 0, 3, 1, 1, 0, 0, 3])
    assert [place.token for place in top(trace, "L0N0", count=6, apart=1)] == [1, 2, 4, 9, 0, 5]
    assert [place.token for place in top(trace, "L0N0", count=4, apart=1, largest=False)] == [3, 7, 8, 0]


def test_places_lie_apart() -> None:
    assert [place.token for place in top(seen([1, 3, 3, 0, 3, 1, 1, 0, 0, 3]), "L0N0", apart=3)] == [1, 4, 9]


def test_contexts_are_those_of_the_text() -> None:
    (place,) = top(seen([0, 0, 0, 5, 0, 0, 0, 0, 0, 0]), "L0N0", count=1)
    assert (place.before, place.piece, place.after, place.value) == ("abc", "d", "efghij", 5)
