"""The text of one sample: token ids decoded as they are drawn, stop strings, and where the text ends."""

from typing import Literal

from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.generation.stop_strings import StopScanner

FinishReason = Literal["stop", "length"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class SampleText:
    """Decodes the tokens of one sample and says when it ends.

    Args:
        tokenizer: Tokenizer of the model.
        prompt: Ids before the first drawn token; they decide whether the first word needs a space before it.
        sampling: `max_tokens` and `stop`.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: list[int], sampling: SamplingConfig) -> None:
        self.tokens = 0
        self.length = 0
        """Characters decoded so far, with those that are held back as the possible beginning of a stop string."""
        self._eos_token_id, self._sampling = tokenizer.eos_token_id, sampling
        self._decoder, self._scanner = tokenizer.stream(), StopScanner(sampling.stop)
        shown = self._decoder.push_all(prompt)
        self._prompt_held = (shown + self._decoder.fork().flush())[len(shown) :].strip()

    def fork(self) -> "SampleText":
        """Another sample of the same prompt. No token was drawn for either yet."""
        other = object.__new__(SampleText)
        other.__dict__ |= self.__dict__
        other._decoder, other._scanner = self._decoder.fork(), StopScanner(self._sampling.stop)
        return other

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._scanner.found

    def push(self, token: int) -> tuple[str, FinishReason | None]:
        """The text that this token completes, and why the sample ends with it, if it does."""
        self.tokens += 1
        ends = token == self._eos_token_id
        text = self._scanner.push(self._own("" if ends else self._decoder.push(token)))
        if self._scanner.found is None and (ends or self.tokens == self._sampling.max_tokens):
            text += self.finish()
            return text, "length" if self._scanner.found is None and not ends else "stop"
        return text, None if self._scanner.found is None else "stop"

    def push_all(self, tokens: list[int]) -> tuple[str, int, FinishReason | None]:
        """As `push` of one token after the other, up to the end; and how many were taken."""
        plain = not self._sampling.stop and self._eos_token_id not in tokens
        if plain and self.tokens + len(tokens) < self._sampling.max_tokens:
            self.tokens += len(tokens)
            return self._own(self._decoder.push_all(tokens)), len(tokens), None
        text = ""
        for count, token in enumerate(tokens, 1):
            more, reason = self.push(token)
            text += more
            if reason is not None:
                return text, count, reason
        return text, len(tokens), None

    def finish(self) -> str:
        """The rest of the text if no further token comes."""
        # What the decoder still holds at the end may be the first bytes of a character.
        text = self._scanner.push(self._own(self._decoder.flush()).rstrip(REPLACEMENT))
        return text if self._scanner.found is not None else text + self._scanner.flush()

    def _own(self, text: str) -> str:
        """The text without the end of the prompt, if the decoder had held that back."""
        if text and self._prompt_held:
            held, self._prompt_held = self._prompt_held, ""
            if text.lstrip().startswith(held):
                text = text.lstrip().removeprefix(held)
        self.length += len(text)
        return text
