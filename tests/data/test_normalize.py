from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltc_textgen.data.normalize import StreamNormalizer, describe_changes, normalize
from ltc_textgen.errors import UsageError

TEXTS = st.text(st.sampled_from("ab\r\n\ufeff é"), max_size=30)


@given(TEXTS, st.lists(st.integers(0, 30), max_size=4))
def test_chunks_give_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    places = sorted(min(cut, len(text)) for cut in cuts)
    stream = StreamNormalizer("", Counter())
    borders = list(zip([0, *places], [*places, len(text)], strict=True))
    parts = [stream(text[a:b], final=b == len(text) and n == len(borders) - 1) for n, (a, b) in enumerate(borders)]
    assert "".join(parts) == normalize(text)


@given(TEXTS)
def test_a_normal_text_stays_as_it_is(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert not set(once) & {"\r", "\ufeff"}


@pytest.mark.parametrize(("text", "place"), [("a\0b", "character 1"), ("ab\ud800", "character 2")])
def test_what_is_no_text_is_rejected(text: str, place: str) -> None:
    with pytest.raises(UsageError, match=place) as failure:
        normalize(text, "prompt")
    assert "prompt" in str(failure.value)


def test_changes_in_words() -> None:
    assert describe_changes(Counter()) == []
    (line,) = describe_changes(Counter(replaced=1234, marks=2))
    assert "1,234" in line
