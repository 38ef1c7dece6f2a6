"""Counters of the server in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What happened since the server started; one object for each server.

    The methods are called by the engine thread and by the event loop; prometheus-client's counters are thread-safe.
    """

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = self._counter("requests", "Requests answered.", "endpoint", "code")
        self._finished = self._counter("finished", "Texts that ended, by reason.", "model", "reason")
        self._rejected = self._counter("rejected", "Requests rejected before they were queued.", "reason")
        self._cancelled = self._counter("cancelled", "Texts whose client had gone.", "phase")
        self._stalled = self._counter("streams_stalled", "Streams dropped because the client did not read them.")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", "model")
        self._cached_tokens = self._counter("cached_prompt_tokens", "Prompt tokens found in the prefix cache.", "model")
        self._generated = self._counter("generated_tokens", "Tokens drawn.", "model")
        self._evictions = self._counter("state_evictions", "Saved states dropped for age or room.")
        self._running = self._gauge("requests_running", "Texts that are being written.")
        self._waiting = self._gauge("requests_waiting", "Texts that wait for a slot.")
        self._states = self._gauge("states", "States kept, by kind.", "kind")
        self._state_bytes = self._gauge("state_bytes", "Bytes of the states kept.", "kind")
        self._queue = self._seconds("queue", "Time in the queue.", "model")
        self._first = self._seconds("time_to_first_token", "From the request to its first token.", "model")
        self._between = self._seconds("inter_token", "Between tokens of one text.", "model")
        self._request_seconds = self._seconds("request", "From a request to the end of its answer.", "endpoint")
        self._call = self._seconds("decode_call", "One call of an engine.")
        self._rows = Histogram(
            "ltc_serve_rows_per_call", "Texts in one call of an engine.", registry=self._registry, buckets=ROWS
        )
        self._build = Info("ltc_serve_build", "What is being served.", ["model"], registry=self._registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"ltc_serve_{name}", help, labels, registry=self._registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"ltc_serve_{name}", help, labels, registry=self._registry)

    def _seconds(self, name: str, help: str, *labels: str) -> Histogram:
        return Histogram(f"ltc_serve_{name}_seconds", help, labels, registry=self._registry, buckets=SECONDS)

    def text(self) -> bytes:
        """All metrics, in `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def build(self, model: str, **facts: str) -> None:
        """What is served under a name: fingerprint, engine, isa."""
        self._build.labels(model).info(facts)

    def request(self, endpoint: str, code: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(endpoint, str(code)).inc()
        self._request_seconds.labels(endpoint).observe(seconds)

    def rejected(self, reason: str) -> None:
        """A request was rejected before it was queued."""
        self._rejected.labels(reason).inc()

    def queued(self, model: str, seconds: float) -> None:
        """A prompt has left the queue after some time."""
        self._queue.labels(model).observe(seconds)

    def prompt(self, model: str, tokens: int, cached: int) -> None:
        """A prompt is being read, of which some tokens need not be."""
        self._prompt_tokens.labels(model).inc(tokens)
        self._cached_tokens.labels(model).inc(cached)

    def call(self, rows: int, seconds: float) -> None:
        """An engine has drawn for some rows."""
        self._rows.observe(rows)
        self._call.observe(seconds)

    def first(self, model: str, seconds: float) -> None:
        """A text has got its first token, some time after its request came."""
        self._first.labels(model).observe(seconds)

    def generated(self, model: str, tokens: int, seconds: float) -> None:
        """Texts have grown together by some tokens, in as many seconds as all of them waited for them."""
        if tokens:
            self._generated.labels(model).inc(tokens)
            self._between.labels(model).observe(seconds / tokens)

    def finished(self, model: str, reason: str) -> None:
        """A text has ended: stop, length, abort or error."""
        self._finished.labels(model, reason).inc()

    def cancelled(self, phase: str) -> None:
        """A text was dropped because its client had gone: in the queue, while reading its prompt, or decoding."""
        self._cancelled.labels(phase).inc()

    def stalled(self) -> None:
        """A stream was dropped because its client did not read it."""
        self._stalled.inc()

    def evicted(self) -> None:
        """A saved state was dropped."""
        self._evictions.inc()

    def load(self, running: int, waiting: int) -> None:
        """How many texts are being written, and how many wait."""
        self._running.set(running)
        self._waiting.set(waiting)

    def states(self, kind: str, count: int, size: int) -> None:
        """How many states are kept (saved, prefix), and how large they are."""
        self._states.labels(kind).set(count)
        self._state_bytes.labels(kind).set(size)
