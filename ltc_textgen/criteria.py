"""What `generate` of transformers asks after every token: can a token be drawn, and has a text reached its end?"""

from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from ltc_textgen.errors import LogitsError, UsageError
from ltc_textgen.shapes import Bool, Int, Tensor

MARGIN = 8
"""Tokens beside those of a stop string that are decoded with it: the first may be a part of a character."""


class FiniteLogits(LogitsProcessor):
    """Refuses logits that no token can be drawn from; transformers would write token 0 for ever."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.amax(dim=-1)
        broken = ~best.isfinite()
        if not bool(broken.any()):
            return scores
        row = int(broken.nonzero()[0, 0])
        if float(best[row]) == float("-inf"):
            raise LogitsError(
                f"sequence {row}: every token is forbidden; loosen the constraints on what may be written"
            )
        raise LogitsError(
            f"the model's logits of sequence {row} are NaN or infinite: its weights are broken, or the state before"
        )


class StopStrings(StoppingCriteria):
    """Ends a sequence with the token that completes one of some texts.

    That of transformers tries tokens behind the letters "abcdef", and fails where a vocabulary of characters lacks one.

    Args:
        texts: Stop strings, none of them empty.
        tokenizer: Of this package or of transformers.

    Raises:
        UsageError: If there is no tokenizer, or an empty text.
    """

    def __init__(self, texts: str | list[str], tokenizer: Any) -> None:
        self.texts = [texts] if isinstance(texts, str) else list(texts)
        if tokenizer is None:
            raise UsageError("stop_strings: give generate the tokenizer too")
        if not self.texts or not all(self.texts):
            raise UsageError(f"stop_strings: expected texts that are not empty, got {self.texts}")
        self.tokenizer = tokenizer
        # A token writes one byte of UTF-8 at least, but for special ones.
        self.tail = MARGIN + max(len(text.encode()) for text in self.texts)

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Any, **kwargs: Any) -> Bool[Tensor, " B"]:
        ended = [self._ends(row) for row in input_ids[:, -self.tail :].tolist()]
        return torch.tensor(ended, device=input_ids.device)

    def _ends(self, ids: list[int]) -> bool:
        before, now = (self.tokenizer.decode(part) for part in (ids[:-1], ids))
        return any(_occurrences(text, now) > _occurrences(text, before) for text in self.texts)


def _occurrences(text: str, within: str) -> int:
    """How often a text occurs, also where one begins before another has ended."""
    return sum(within.startswith(text, start) for start in range(len(within)))
