"""What the tests of the commands share: a short text, a small network, and how a command ended."""

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
