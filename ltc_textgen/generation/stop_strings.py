"""Stop strings in a text that arrives in chunks."""


class StopScanner:
    """Passes text on up to the first stop string, however the text is split into chunks.

    The text ends where a stop string is first complete, and is returned up to the beginning of that stop string. The
    beginning of a possible stop string is held back until the text after it decides, so that no text is withdrawn.

    Args:
        stops: Stop strings, none of them empty; without any, text is passed on at once.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that can now be shown; sets `found` to the stop string that is complete, if one is."""
        held = self._held + text
        # The stop string that ends first wins; of several that end together, the longest.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            _, at, self.found = min(found)
            self._held = ""
            return held[:at]
        cut = len(held) - self._possible(held)
        self._held = held[cut:]
        return held[:cut]

    def flush(self) -> str:
        """The text held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a prefix of a stop string."""
        lengths = range(min(len(text), self._longest - 1), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
