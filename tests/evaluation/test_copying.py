"""Copied runs against a naive search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltc_textgen.evaluation.copying import RUN, measure_copying

TEXTS = st.text("ab", max_size=40)


def naive_longest(text: str, source: list[str]) -> int:
    lengths = (
        n
        for n in range(len(text), 0, -1)
        for i in range(len(text) - n + 1)
        if any(text[i : i + n] in s for s in source)
    )
    return next(lengths, 0)


@given(text=TEXTS, source=st.lists(TEXTS, max_size=3))
@settings(max_examples=200)
def test_the_longest_run_is_that_of_a_search(text: str, source: list[str]) -> None:
    assert measure_copying(text, source).longest == naive_longest(text, source)


def test_the_fraction_counts_the_characters_of_long_runs() -> None:
    draw = np.random.default_rng(0)
    source = "".join(draw.choice(list("abcdefgh"), 2000))
    text = "X" * 30 + source[100 : 100 + RUN + 20] + "Y" * 30 + source[500 : 500 + RUN - 1] + "Z"
    found = measure_copying(text, [source])
    assert found.longest == RUN + 20
    assert found.fraction == pytest.approx((RUN + 20) / len(text))


def test_runs_do_not_reach_over_documents() -> None:
    assert measure_copying("abcdef", ["abc", "def"]).longest == 3


def test_nothing_is_copied_from_nothing() -> None:
    assert measure_copying("abc", []).longest == 0
    assert measure_copying("", ["abc"]).fraction == 0.0


def test_characters_beyond_the_first_plane_and_lone_surrogates_count_as_one() -> None:
    assert measure_copying("x😀\ud800y", ["a😀\ud800b"]).longest == 2
