import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltc_textgen.training.optimizer import rate_factor


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.01), (0.05, 0.5), (0.1, 1.0), (0.55, 0.6), (1.0, 0.2), (1.7, 0.2), (-3.0, 0.01)],
)
def test_rises_in_a_line_then_falls_on_a_cosine(progress, expected):
    assert rate_factor(progress, warmup_ratio=0.1, floor=0.2) == pytest.approx(expected)


def test_without_warm_up_it_starts_at_the_peak():
    assert rate_factor(0.0, warmup_ratio=0.0, floor=0.0) == 1.0


@given(st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_after_the_warm_up_it_never_rises_and_never_leaves_its_range(warmup, a, b):
    low, high = sorted((a, b))
    first, second = (rate_factor(p, warmup, 0.1) for p in (low, high))
    assert 0 < first <= 1
    assert 0 < second <= 1
    if low >= warmup:
        assert second <= first + 1e-12
