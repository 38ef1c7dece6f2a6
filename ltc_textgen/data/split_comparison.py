"""The validation text compared with the training text: unknown tokens, and the distance of token frequencies.

A corpus that is sorted by language or source has a held-out end that is unlike the rest. Its loss then measures that
difference and not overfitting.
"""

from dataclasses import dataclass

import numpy as np

SAMPLE = 1_000_000
"""Most tokens of a split that are compared, in `PLACES` passages."""

PLACES = 16
UNKNOWN = 0.02
DISTANCE = 0.3


@dataclass(frozen=True)
class SplitComparison:
    """The validation text compared with the training text.

    Args:
        train_unknown_rate: Fraction of the training tokens that are the unknown token, 0 to 1.
        valid_unknown_rate: The same of the validation tokens.
        distance: Total variation distance of the token frequencies of both, 0 (equal) to 1 (no token in common).
        usual_distance: The same between the end of the training text, as long as the validation text, and the rest of
            it: the distance due to sampling and to drift within the training text.
    """

    train_unknown_rate: float
    valid_unknown_rate: float
    distance: float
    usual_distance: float

    @classmethod
    def of(
        cls, train: np.ndarray, valid: np.ndarray, vocab_size: int, train_unknown_rate: float, valid_unknown_rate: float
    ) -> "SplitComparison":
        """Compare two streams of token ids, (T,) each."""
        length = min(len(valid), len(train) // 2)
        rest, end = train[: len(train) - length], train[len(train) - length :]
        frequencies = [_frequencies(part, vocab_size) for part in (valid[:length], end, rest)]
        distance, usual = (float(np.abs(part - frequencies[2]).sum() / 2) for part in frequencies[:2])
        return cls(train_unknown_rate, valid_unknown_rate, distance, usual)

    @property
    def unknown(self) -> bool:
        """Whether unknown tokens are much more frequent in the validation text than in the training text."""
        return self.valid_unknown_rate > max(UNKNOWN, 5 * self.train_unknown_rate)

    @property
    def unlike(self) -> bool:
        """Whether the validation text is unlike the training text: other letters, language or source.

        A validation loss above the training loss is then no sign of overfitting.
        """
        return self.unknown or self.distance > max(DISTANCE, 2 * self.usual_distance)

    def warnings(self) -> list[str]:
        """What the user should know, in words; empty if the texts are alike."""
        advice = "shuffle the documents, or give another text to validate on with --valid"
        if self.unknown:
            return [
                f"{self.valid_unknown_rate:.1%} of the validation text is unknown to the tokenizer (training text: "
                f"{self.train_unknown_rate:.1%}): the held-out part is unlike the rest; {advice}"
            ]
        if self.unlike:
            return [
                f"the validation text is unlike the training text (distance of token frequencies {self.distance:.2f}, "
                f"within the training text {self.usual_distance:.2f}): {advice}"
            ]
        return []


def _frequencies(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Relative frequency of each token id, (V,), from at most `SAMPLE` tokens."""
    if len(tokens) > SAMPLE:
        length = SAMPLE // PLACES
        starts = np.linspace(0, len(tokens) - length, PLACES).astype(int)
        tokens = np.concatenate([tokens[start : start + length] for start in starts])
    counts = np.bincount(tokens, minlength=vocab_size)
    return counts / max(1, len(tokens))
