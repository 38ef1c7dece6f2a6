"""A run whose listener goes away (`ltc train 2>&1 | head`, a lost terminal) goes on unheard."""

from collections.abc import Callable
from typing import Any

from ltc_textgen.data.token_writer import Tokenizing
from ltc_textgen.training.report import Pace, Reporter, Validation


class SurvivingReporter(Reporter):
    """Passes everything on until the other side cannot be written to any more; from then on says nothing.

    Args:
        listener: Who hears about the run.
    """

    def __init__(self, listener: Reporter) -> None:
        self._listener = listener

    def note(self, text: str) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.note(text))

    def start(self, facts: dict[str, Any]) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.start(facts))

    def tokenizing(self, state: Tokenizing) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.tokenizing(state))

    def step(self, pace: Pace) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.step(pace))

    def validation(self, result: Validation) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.validation(result))

    def checkpoint(self, step: int, seconds: float) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.checkpoint(step, seconds))

    def end(self, result: dict[str, Any]) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.end(result))

    def close(self) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.close())

    def _tell(self, message: Callable[[Reporter], None]) -> None:
        try:
            message(self._listener)
        except OSError:  # a closed pipe, a terminal that hung up
            self._listener = Reporter()
