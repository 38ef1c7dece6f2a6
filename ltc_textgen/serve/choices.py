"""The choices of a request so far, put together from the pieces of a stream."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltc_textgen.model.state import LiquidState
from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.engine import Scored
from ltc_textgen.serve.jobs import Job, Piece, Reason
from ltc_textgen.shapes import Tensor


@dataclass
class Choice:
    """One text: the pieces of a choice together. Fields as in `Piece` and `Drawn`."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    tau: list[Tensor] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    reason: Reason | None = None
    stop: str | None = None
    prompt: list[Scored] | None = None
    state: tuple[LiquidState, int] | None = None
    error: ApiError | None = None

    def add(self, piece: Piece) -> None:
        """Append a piece of text."""
        self.text += piece.text
        self.tokens += piece.drawn.tokens
        self.scored += piece.drawn.scored or []
        self.tau += [] if piece.drawn.tau is None else [piece.drawn.tau]
        self.offsets += piece.offsets
        self.prompt = piece.prompt if piece.prompt is not None else self.prompt
        self.reason, self.stop, self.state, self.error = piece.reason, piece.stop, piece.state, piece.error

    @property
    def ended(self) -> bool:
        """Whether no more pieces come."""
        return self.reason is not None or self.error is not None

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens, by which `best_of` ranks."""
        return sum(score.logprob for score in self.scored) / max(len(self.scored), 1)


def merge(pieces: Iterable[Piece]) -> list[Choice]:
    """The pieces of each choice as one, in order of the choices."""
    merged: dict[int, Choice] = {}
    for piece in pieces:
        merged.setdefault(piece.index, Choice(piece.index)).add(piece)
    return [merged[index] for index in sorted(merged)]


@dataclass
class Usage:
    """Tokens of a request.

    Args:
        jobs: Its jobs, whose prompts count once each, whatever the number of their samples.
        completion: Tokens drawn so far.
    """

    jobs: Sequence[Job]
    completion: int = 0

    def document(self) -> dict[str, Any]:
        """The `usage` of an answer."""
        prompt = sum(job.new_tokens for job in self.jobs)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": sum(job.cached for job in self.jobs)},
        }


def completion_logprobs(
    spelling: Sequence[str], tokens: Sequence[int], scored: Sequence[Scored | None], offsets: Sequence[int]
) -> dict[str, Any]:
    """The `logprobs` of a completion: four lists with an entry for each token. A token without a score has null."""
    return {
        "tokens": [spelling[token] for token in tokens],
        "token_logprobs": [None if score is None else score.logprob for score in scored],
        "top_logprobs": [_top(spelling, token, score) for token, score in zip(tokens, scored, strict=True)],
        "text_offset": list(offsets),
    }


def _top(spelling: Sequence[str], token: int, score: Scored | None) -> dict[str, float] | None:
    if score is None:
        return None
    top = {spelling[other]: logprob for other, logprob in score.top}
    return top | {spelling[token]: score.logprob}


def chat_logprobs(spelling: Sequence[str], contents: Sequence[bytes], choice: Choice) -> dict[str, Any]:
    """The `logprobs` of a chat message: an entry for each token."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": spelling[token], "logprob": logprob, "bytes": list(contents[token])}

    content = []
    for token, score in zip(choice.tokens, choice.scored, strict=True):
        top = [entry(other, logprob) for other, logprob in score.top]
        content.append({**entry(token, score.logprob), "top_logprobs": top})
    return {"content": content}
