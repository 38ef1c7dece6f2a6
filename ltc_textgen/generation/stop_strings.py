"""Stop strings in a text that arrives in pieces."""


class StopScanner:
    """Lets text through up to the first stop string, however the pieces are cut.

    The text ends where a stop string is first complete, and is returned up to where that stop string begins. Nothing
    that could be the beginning of a stop string is let through before it is known not to be one, so that what was
    shown never has to be taken back.

    Args:
        stops: Texts that end the text, none of them empty; no stops let everything through at once.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that may now be shown; sets `stopped` if a stop string is complete."""
        held = self._held + text
        # A stop string that ends first wins, whatever the cut; of several that end together, the longest.
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)[1]]
        cut = len(held) - self._possible(held)
        self._held = held[cut:]
        return held[:cut]

    def flush(self) -> str:
        """What was held back, once it is known that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        lengths = range(min(len(text), self._longest - 1), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
