"""What a run is going to read, reported before its first step: text, passes, their time, and advice."""

from dataclasses import dataclass

from ltc_textgen.data.token_cache import TokenData
from ltc_textgen.training.budget import Budget, duration

MANY = 50
"""Passes over a text from which on a run mostly repeats it; the presets make one to ten."""


@dataclass(frozen=True)
class Outlook:
    """What a run is going to read.

    Args:
        characters: Of the training text.
        words: Of the training text.
        vocabulary: Token ids.
        steps_per_pass: Steps that read the training text once.
        pass_seconds: Time of one pass, validations left out; None if it was not measured.
        passes: Over the training text, in the whole run.
        by_time: Seconds of the whole run if time governs.
    """

    characters: int
    words: int
    vocabulary: int
    steps_per_pass: int
    pass_seconds: float | None
    passes: float
    by_time: float | None

    @classmethod
    def of(
        cls,
        data: TokenData,
        budget: Budget,
        steps_per_pass: int,
        step_seconds: float | None,
        validation_seconds: float | None,
    ) -> "Outlook":
        """The outlook of a run.

        Args:
            data: Its text.
            budget: When it ends.
            steps_per_pass: Steps that read the training text once.
            step_seconds: Time of a step, if it was measured.
            validation_seconds: Time of a validation, if it was measured.
        """
        pass_seconds = None if step_seconds is None else step_seconds * steps_per_pass
        if budget.steps is not None:
            passes = budget.steps / steps_per_pass
        else:
            assert budget.seconds is not None, "see Budget"
            stepping = max(budget.seconds - budget.validations(validation_seconds) * (validation_seconds or 0.0), 0.0)
            passes = stepping / max(pass_seconds or 0.0, 1e-9)
        return cls(
            characters=data.train_characters,
            words=data.train_words,
            vocabulary=data.tokenizer.vocab_size,
            steps_per_pass=steps_per_pass,
            pass_seconds=pass_seconds,
            passes=passes,
            by_time=budget.seconds,
        )

    def lines(self) -> list[str]:
        """For the user, in a few lines."""
        found = [
            f"text: {self.characters:,} characters, {self.words:,} words to train on; "
            f"{self.vocabulary:,} different tokens"
        ]
        one = f"one pass: {self.steps_per_pass:,} steps"
        if self.pass_seconds is not None:
            one += f", about {duration(self.pass_seconds)}"
        whole = f"{duration(self.by_time)} are about" if self.by_time is not None else "this run makes"
        found.append(f"{one}; {whole} {self.passes:,.1f} passes")
        advice = self.advice()
        return found + ([advice] if advice else [])

    def advice(self) -> str | None:
        """What to choose instead, if the text and the length of the run do not go together."""
        if self.passes < 1 and self.by_time is not None and self.pass_seconds is not None:
            longer = duration(self.by_time / max(self.passes, 1e-3))
            return (
                f"a part of the text will not be read: --time-budget {longer} reads all of it once, --preset auto "
                "sizes the network by text and time"
            )
        if self.passes > MANY:
            return (
                "so many passes overfit the text: the best weights are kept; more text, a shorter run or --preset "
                "auto, which drops out more, generalize better"
            )
        return None
