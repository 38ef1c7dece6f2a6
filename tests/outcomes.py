"""Helpers of the command tests: a short text, a small network, and the outcome of a command."""

from dataclasses import dataclass

STORY = "".join(
    f"On day {day} the sea was {'calm' if day % 3 else 'wild'}, and the boat came home.\n" for day in range(150)
)
TINY = ["--set", "hidden_size=16", "--set", "num_layers=1", "--set", "batch_size=4", "--set", "sequence_length=16"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line of stderr, where an error stands."""
        return self.err.strip().splitlines()[-1]
