"""Texts whose variety, repetition, loops and distribution of words are known."""

import numpy as np
import pytest

from ltc_textgen.evaluation.text_stats import like_corpus, longest_repeat, looping, measure_text, zipf_exponent


def test_a_loop_of_two_letters():
    found = measure_text("abababab")
    assert found.looping == 1.0
    assert found.longest_repeat == 6  # ababab, at 0 and at 2
    assert found.distinct_1 == 1.0  # it is one word
    assert found.distinct_2 is None


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("the cat sat on the mat", 0.0),
        ("no, no, no, said he", 0.0),
        ("wait... and then ----", 0.0),
        ("x" + "the cat sat. " * 4 + "yz", 52 / 55),
        ("x" + "the cat sat. " * 3 + "yz", 0.0),
        ("aaaaaaaa" + "bcdefghi", 0.5),
        ("aaaaaaa" + "bcdefghij", 0.0),
    ],
)
def test_loops(text, share):
    assert looping(text) == pytest.approx(share)


def slow_longest_repeat(text):
    for length in range(len(text) - 1, 0, -1):
        passages = [text[i : i + length] for i in range(len(text) - length + 1)]
        if len(set(passages)) < len(passages):
            return length
    return 0


@pytest.mark.parametrize("text", ["", "a", "ab", "aa", "aaaaaaaaaa", "abcabd", "xabcdefgy abcdefgz", "é😀é😀x"])
def test_the_longest_repeat(text):
    assert longest_repeat(text) == slow_longest_repeat(text)


def test_the_longest_repeat_of_random_letters():
    draw = np.random.default_rng(0)
    for size in (3, 10, 33, 64, 100):
        text = "".join(draw.choice(list("abc"), size))
        assert longest_repeat(text) == slow_longest_repeat(text)


def test_distinct_and_repeated_grams():
    found = measure_text("The cat sat, the cat sat.")  # the cat sat , the cat sat .
    assert found.distinct_1 == 5 / 8
    assert found.distinct_2 == 5 / 7
    assert found.distinct_3 == 5 / 6
    assert found.distinct_4 == 1.0
    assert found.repeated_4grams == 0.0
    assert measure_text("a b c d " * 3).repeated_4grams == pytest.approx(5 / 9)


def test_the_exponent_of_zipf():
    words = [f"w{rank}" for rank in range(1, 41) for _ in range(round(100_000 / rank**1.3))]
    assert zipf_exponent(words) == pytest.approx(1.3, abs=0.01)
    assert zipf_exponent(["a", "a", "b", "b", "c"]) is None


def test_the_corpus_is_cut_into_pieces_of_that_length():
    assert like_corpus(["short"], 100) is None
    assert like_corpus(["short"], 0) is None
    one = like_corpus(["too short", "abababab" + "the cat sat"], 8)
    assert one.looping == pytest.approx(1 / 3)  # of too shor, abababab and "the cat "
    many = like_corpus(["abcdefgh" * 30 + "aaaaaaaa" * 30], 8)
    assert many.looping == 0.0, "the first pieces alone"
