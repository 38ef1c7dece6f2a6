"""States that clients have saved: by content, within a budget, for some time."""

import base64
import binascii
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ltc_textgen.errors import ArtifactError
from ltc_textgen.io.hashing import digest
from ltc_textgen.model.state import LiquidState
from ltc_textgen.model.text_state import TextState
from ltc_textgen.serve.api_error import ApiError, bad_request
from ltc_textgen.serve.metrics import Metrics
from ltc_textgen.serve.models import Models, Served
from ltc_textgen.serve.prefix_cache import state_bytes

MOST_BYTES = 1 << 20
"""Most bytes of a state's file."""

PREFIX = "st_"


def state_id(state: TextState) -> str:
    """Names a state by what it holds: equal states have equal names, and a name cannot be guessed without the text."""
    tensors = digest({**state.liquid.tensors(), "last": state.last})
    return PREFIX + hashlib.sha256(f"{state.model}\0{state.tokens}\0{tensors}".encode()).hexdigest()


@dataclass(frozen=True)
class Saved:
    """A state that is kept.

    Args:
        state: Of one text.
        served: The model that has read it.
        expires: When it will be dropped unless it is used, by `time.time`.
    """

    state: TextState
    served: Served
    expires: float

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return state_bytes(self.state.liquid)

    def describe(self) -> dict[str, Any]:
        """Its description for clients, as JSON values."""
        return {
            "id": state_id(self.state),
            "object": "ltc.state",
            "model": self.served.name,
            "tokens": self.state.tokens[0],
            "bytes": self.size,
            "expires": int(self.expires),
        }


class StateStore:
    """Least recently used states are dropped first. All methods are called on the event loop.

    Args:
        budget: Bytes of all states together.
        ttl: Seconds after its last use that a state is kept.
        metrics: Where evictions are counted.
        clock: The time, in seconds.
    """

    def __init__(self, budget: int, ttl: float, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._budget, self._ttl, self._metrics, self._clock = budget, ttl, metrics, clock
        self._saved: OrderedDict[str, Saved] = OrderedDict()
        self._bytes = 0

    def put(self, state: TextState, served: Served) -> Saved:
        """Keep a state; others may be dropped for it.

        Raises:
            ApiError: 429 if it is larger than the budget.
        """
        saved, name = Saved(state, served, self._clock() + self._ttl), state_id(state)
        if saved.size > self._budget:
            raise ApiError(429, "there is no memory for states", code="state_memory_full")
        self._remove(name)
        self._saved[name] = saved
        self._bytes += saved.size
        self._evict()
        return saved

    def get(self, name: str) -> Saved:
        """A state, whose time to live is renewed.

        Raises:
            ApiError: 404 if it is not known, or no longer.
        """
        self._evict()
        if name not in self._saved:
            message = f"no state {name[:80]!r}: it was never saved, or has been dropped"
            raise ApiError(404, message, "ltc.state", "state_not_found")
        found = self._saved.pop(name)
        saved = self._saved[name] = Saved(found.state, found.served, self._clock() + self._ttl)
        return saved

    def delete(self, name: str) -> None:
        """Drop a state. Errors as in `get`."""
        self.get(name)
        self._remove(name)
        self._report()

    def _remove(self, name: str) -> None:
        if (saved := self._saved.pop(name, None)) is not None:
            self._bytes -= saved.size

    def _evict(self) -> None:
        now = self._clock()
        while self._saved:
            name, oldest = next(iter(self._saved.items()))
            if oldest.expires > now and self._bytes <= self._budget:
                break
            self._remove(name)
            self._metrics.evicted()
        self._report()

    def _report(self) -> None:
        self._metrics.states("saved", len(self._saved), self._bytes)


class _Reader:
    """What reading a state needs to know of a model; its fingerprint is computed once."""

    def __init__(self, served: Served) -> None:
        self.served, self.settings = served, served.model.settings

    def initial_state(self, batch_size: int) -> LiquidState:
        return self.served.model.initial_state(batch_size).detach()

    def fingerprint(self) -> str:
        return self.served.weights


def read_state(content: bytes, served: Served, param: str | None = None) -> TextState:
    """The state in a file.

    Raises:
        ApiError: 400 if it is damaged, too large, no state, of several texts, or of another model.
    """
    if len(content) > MOST_BYTES:
        raise ApiError(413, f"a state has at most {MOST_BYTES:,} bytes, got {len(content):,}", param)
    try:
        state = TextState.from_bytes(content, _Reader(served))
    except ArtifactError as error:
        mismatch = "another model" in str(error)
        message = f"{error}; this is {served.name}, {served.weights}" if mismatch else str(error)
        raise bad_request(message, param, "state_mismatch" if mismatch else "state_damaged") from None
    if state.batch_size != 1:
        raise bad_request(f"expected the state of one text, got {state.batch_size}", param)
    return state


def find_state(text: str | None, served: Served, store: StateStore) -> TextState | None:
    """The state that a request names by id, or brings in base64; None without one.

    Raises:
        ApiError: If it is not known, damaged, or of another model.
    """
    if text is None:
        return None
    if text.startswith(PREFIX):
        saved = store.get(text)
        if saved.state.model != served.weights:
            message = f"the state is of {saved.state.model}, this is {served.name}, {served.weights}"
            raise bad_request(message, "ltc.state", "state_mismatch")
        return saved.state
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request('ltc.state: expected an id ("st_...") or a file in base64', "ltc.state") from None
    return read_state(content, served, "ltc.state")


def model_of(content: bytes, models: Models, name: str | None) -> Served:
    """The model of a state's file: the named one, else the one whose fingerprint it has, else the first."""
    if name is None:
        for served in models:
            if served.weights.encode() in content[:65536]:
                return served
    return models.find(name)
