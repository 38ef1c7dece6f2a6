"""Properties of a text, token by token."""

import numpy as np
import pytest

from ltc_textgen.analysis import labels, word_frequency
from ltc_textgen.analysis.labels import NAMES
from ltc_textgen.errors import UsageError

CASES = [
    ("quotes", 'a "b" c', "0011100"[:4] + "000"),
    ("quotes", "x “y «z” w", "0011111000"),
    ("quotes", '"a\n\nb"c', "1100011"),
    ("brackets", "a(b[c]d)e", "011111100"[:7] + "00"),
    ("brackets", "a)b(c", "00011"),
    ("capitals", "aB c", "01-0"),
    ("digits", "a12 3", "01101"),
    ("spaces", "a b\n", "0101"),
    ("vowels", "ba Ü", "01-0"),
    ("line_start", "abcdefg\nhi", "1111100011"),
    ("speaker", "ROMEO:\nHo: x\nA b:", "1111110000000" + "1111"),
    ("speaker", "He said:\nno", "111111110" + "00"),
]


def written(values: np.ndarray) -> str:
    return "".join("-" if np.isnan(value) else str(int(value)) for value in values)


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_a_property_of_characters(name: str, text: str, expected: str) -> None:
    assert written(labels(list(text))[name]) == expected


def test_positions_are_numbers() -> None:
    found = labels(list("ab c\nde"))
    assert written(found["line_position"]) == "0123401"
    assert written(found["word_position"]) == "01-0-01"


def test_words_are_ranked_by_frequency() -> None:
    pieces = list("the cat the dog the end The")
    assert written(word_frequency(pieces)) == "444-111-444-111-444-111-444"
    found = labels(pieces)
    assert written(found["frequent_words"]) == "111-000-111-000-111-000-111"
    assert written(found["rare_words"]) == "000-111-000-111-000-111-000"


def test_a_token_has_the_property_of_its_last_character() -> None:
    assert written(labels(['say "', "go", "", '"!'])["quotes"]) == "1110"
    assert written(labels(["", "a"])["digits"]) == "-0"


def test_a_regular_expression() -> None:
    assert written(labels(list("he said no"), r"(?<=said )\w+")["regex"]) == "0000000011"
    with pytest.raises(UsageError):
        labels(list("a"), "(")


def test_every_name_is_listed_and_empty_texts_have_no_labels() -> None:
    assert set(labels(list("ab"))) == set(NAMES)
    assert all(np.isnan(values).all() for values in labels(["", ""]).values())
