import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ltc_textgen.generation.stop_strings import StopScanner


def first_stop(text, stops):
    """Reference: grow the text by one character until a stop string is complete."""
    for end in range(1, len(text) + 1):
        matches = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[: min(matches)], True
    return text, False


@pytest.mark.slow
@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3).map(tuple),
)
@example(pieces=["xa", "b", "ab", "c"], stops=("ababc",))
@example(pieces=["abc"], stops=("abc", "b"))
@settings(max_examples=1000, deadline=None)
def test_any_cut_gives_the_text_before_the_first_stop_and_takes_nothing_back(pieces, stops):
    text = "".join(pieces)
    expected, stops_here = first_stop(text, stops)
    scanner, shown = StopScanner(stops), ""
    for piece in pieces:
        shown += scanner.push(piece)
        assert expected.startswith(shown)
        if scanner.found:
            break
    assert (scanner.found is not None) == stops_here
    assert shown + ("" if stops_here else scanner.flush()) == expected


def test_only_what_may_begin_a_stop_is_held_back():
    scanner = StopScanner(("END",))
    assert scanner.push("the EN") == "the "
    assert scanner.push("EMY EN") == "ENEMY "
    assert scanner.push("D of it") == ""
    assert scanner.found == "END"

    scanner = StopScanner(("\n\n",))
    assert [scanner.push(piece) for piece in ("a\n", "b", "\n")] == ["a", "\nb", ""]
    assert scanner.flush() == "\n"
    assert scanner.found is None


def test_without_stops_everything_passes_at_once():
    scanner = StopScanner(())
    assert scanner.push("anything") == "anything"
    assert scanner.flush() == ""
