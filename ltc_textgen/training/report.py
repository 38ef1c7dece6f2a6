"""Progress of a run: a live bar on a terminal, plain lines elsewhere, JSON events for programs.

Everything goes to stderr; stdout is for the result. A run whose stderr closes (`ltc train 2>&1 | head`, a lost
terminal) continues without reporting.
"""

import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from io import TextIOBase
from typing import IO, Any, cast

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from ltc_textgen.data.token_writer import Tokenizing
from ltc_textgen.io.output import print_json, print_line, printable

PLAIN_SECONDS = 5.0
"""Least time between two plain lines about steps."""

LIVE_SECONDS = 0.1


@dataclass(frozen=True)
class Pace:
    """How far a run is, and how fast.

    Args:
        step: Steps done.
        total_steps: Steps of the whole run, None in a run by time.
        done: Fraction of the run that is done, 0 to 1.
        loss: Mean training loss of the last steps, nats per token; None before the first.
        learning_rate: Of the last step.
        tokens_per_second: Training speed.
        seconds: Time since the run began.
        remaining: Seconds to its end; None if not known yet.
    """

    step: int
    total_steps: int | None
    done: float
    loss: float | None
    learning_rate: float
    tokens_per_second: float
    seconds: float
    remaining: float | None


@dataclass(frozen=True)
class Validation:
    """Result of a validation.

    Args:
        step: Steps done.
        val_loss: Nats per token, carried state.
        train_loss: Mean training loss of about the last hundred steps.
        best: Whether it is the lowest so far.
        seconds: Time since the run began.
        sample: Text that the model generated, None if none was asked for.
    """

    step: int
    val_loss: float
    train_loss: float | None
    best: bool
    seconds: float
    sample: str | None

    @property
    def gap(self) -> float | None:
        """How much higher the validation loss is than the training loss; a growing gap is overfitting."""
        return None if self.train_loss is None else self.val_loss - self.train_loss


class Reporter:
    """Reports a run, in the main process only. This base class reports nothing.

    `step` is called after every step, so it must be quick.
    """

    def note(self, text: str) -> None:
        """Report a message of one line."""

    def start(self, facts: dict[str, Any]) -> None:
        """Everything is ready for the first step, or the first after resuming."""

    def tokenizing(self, state: Tokenizing) -> None:
        """Report how much of a long text is tokenised."""

    def step(self, pace: Pace) -> None:
        """Report a training step."""

    def validating(self, step: int, tokens: int) -> None:
        """Report that a validation begins, after a step, on so many tokens."""

    def validation(self, result: Validation) -> None:
        """Report a validation and its sample."""

    def checkpoint(self, step: int, seconds: float) -> None:
        """A checkpoint was written at a step, so many seconds after the run began."""

    def end(self, result: dict[str, Any]) -> None:
        """The run ended with this result, and everything is saved."""

    def close(self) -> None:
        """Clean up: the run has ended or failed."""


class PlainReporter(Reporter):
    """Lines of text, for logs and pipes."""

    def __init__(self, stream: TextIOBase | None = None) -> None:
        self._stream: Any = stream or sys.stderr
        self._printed_at = 0.0

    def note(self, text: str) -> None:
        """Print a message to stderr."""
        print_line(printable(text), self._stream)

    def tokenizing(self, state: Tokenizing) -> None:
        """Print a line at most every `PLAIN_SECONDS`."""
        now = time.monotonic()
        if now - self._printed_at >= PLAIN_SECONDS:
            self._printed_at = now
            self.note(describe_tokenizing(state))

    def step(self, pace: Pace) -> None:
        """Print a line at most every `PLAIN_SECONDS`."""
        now = time.monotonic()
        if now - self._printed_at >= PLAIN_SECONDS:
            self._printed_at = now
            self.note(describe(pace))

    def validation(self, result: Validation) -> None:
        """Print the losses, and the sample below."""
        self.note(describe_validation(result))
        if result.sample:
            self.note("\n".join(f"  | {line}" for line in result.sample.splitlines()))


class JsonReporter(Reporter):
    """One JSON object a line, with the kind of event under "event".

    | event | when | further keys |
    |---|---|---|
    | note | a message for the user | text |
    | tokenizing | at most once a second, for long texts | those of `Tokenizing` |
    | start | before the first step | those of facts.json, step, total_steps, out |
    | step | at most once a second | those of `Pace` |
    | validating | when a validation begins | step, tokens |
    | validation | after each | those of `Validation`, gap |
    | checkpoint | after each | step, seconds |
    | end | when everything is saved | those of `TrainResult` |

    JSON has no NaN and no infinity: such a number is null.
    """

    def __init__(self, stream: TextIOBase | None = None) -> None:
        self._stream: Any = stream or sys.stderr
        self._printed_at = 0.0

    def note(self, text: str) -> None:
        self._emit("note", {"text": text})

    def start(self, facts: dict[str, Any]) -> None:
        self._emit("start", facts)

    def tokenizing(self, state: Tokenizing) -> None:
        self._emit_seldom("tokenizing", asdict(state))

    def step(self, pace: Pace) -> None:
        self._emit_seldom("step", asdict(pace))

    def validating(self, step: int, tokens: int) -> None:
        self._emit("validating", {"step": step, "tokens": tokens})

    def validation(self, result: Validation) -> None:
        self._emit("validation", asdict(result) | {"gap": result.gap})

    def checkpoint(self, step: int, seconds: float) -> None:
        self._emit("checkpoint", {"step": step, "seconds": seconds})

    def end(self, result: dict[str, Any]) -> None:
        self._emit("end", result)

    def _emit_seldom(self, event: str, values: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._printed_at >= 1.0:
            self._printed_at = now
            self._emit(event, values)

    def _emit(self, event: str, values: dict[str, Any]) -> None:
        print_json({"event": event, **values}, self._stream)


class LiveReporter(Reporter):
    """A bar at the foot of the terminal; notes and validations scroll by above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=self._console)
        self._task = self._bar.add_task("starting", total=1.0)
        self._live = Live(self._bar, console=self._console, auto_refresh=False, transient=True)
        self._drawn_at = self._done = 0.0

    def note(self, text: str) -> None:
        """Print a message, above the bar if there is one."""
        self._console.print(Text(printable(text)))

    def tokenizing(self, state: Tokenizing) -> None:
        """Move the bar, which shows tokenization until the first step."""
        self._move(state.done or 0.0, describe_tokenizing(state))

    def step(self, pace: Pace) -> None:
        """Advance the progress bar by a step."""
        self._done = pace.done
        self._move(pace.done, describe(pace))

    def validating(self, step: int, tokens: int) -> None:
        """Show next to the bar why it does not advance."""
        self._drawn_at = 0.0
        self._move(self._done, f"step {step}  validating on {tokens:,} tokens")

    def _move(self, done: float, description: str) -> None:
        self._start()
        now = time.monotonic()
        if now - self._drawn_at >= LIVE_SECONDS:
            self._drawn_at = now
            self._bar.update(self._task, completed=done, description=description)
            self._live.refresh()

    def validation(self, result: Validation) -> None:
        """Print the losses, and the sample dimmed below."""
        self._console.print(Text(describe_validation(result), style="bold" if result.best else ""))
        if result.sample:
            self._console.print(Text(printable(result.sample), style="dim"))

    def close(self) -> None:
        """Remove the progress bar."""
        self._live.stop()

    def _start(self) -> None:
        # Not before there is something to see: a run that is rejected at once leaves no bar on the terminal.
        if not self._live.is_started:
            self._live.start()
            self._console.show_cursor(True)  # a killed run must not leave the terminal without a cursor


def make_reporter(as_json: bool = False, stream: TextIOBase | None = None) -> Reporter:
    """The reporter for a stream (stderr if None): JSON if asked for, live on a terminal, else plain."""
    if as_json:
        return JsonReporter(stream)
    console = Console(file=cast(IO[str], stream)) if stream else Console(stderr=True)
    return LiveReporter(console) if console.is_terminal and not console.is_dumb_terminal else PlainReporter(stream)


def describe(pace: Pace) -> str:
    """One line about a step."""
    steps = f"step {pace.step}" + (f"/{pace.total_steps}" if pace.total_steps else "")
    loss = "" if pace.loss is None else f"  loss {pace.loss:.3f}"
    left = "" if pace.remaining is None else f"  {clock(pace.remaining)} left"
    return f"{steps}{loss}  {pace.tokens_per_second:,.0f} tokens/s{left}"


def describe_tokenizing(state: Tokenizing) -> str:
    """One line about the tokenization."""
    of = "" if state.done is None or state.total_bytes is None else f" of {state.total_bytes / 1e6:,.0f}"
    done = "" if state.done is None else f"  {state.done:.0%}"
    left = "" if state.remaining is None else f"  {clock(state.remaining)} left"
    speed = f"{state.bytes_per_second / 1e6:,.1f} MB/s"
    return f"tokenizing {state.split}: {state.bytes / 1e6:,.0f}{of} MB{done}  {speed}{left}"


def describe_validation(result: Validation) -> str:
    """One line about a validation."""
    trained = "" if result.train_loss is None else f"  train loss {result.train_loss:.4f}  gap {result.gap:+.4f}"
    best = "  (best so far)" if result.best else ""
    return f"step {result.step}  validation loss {result.val_loss:.4f}{trained}{best}"


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class SurvivingReporter(Reporter):
    """Passes every event on until the reporter's stream cannot be written to any more, and drops them from then on.

    Args:
        reporter: Reports the run.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        for event in vars(Reporter):
            if not event.startswith("_"):
                setattr(self, event, partial(self._pass_on, event))

    def _pass_on(self, event: str, *values: Any) -> None:
        try:
            getattr(self._reporter, event)(*values)
        except OSError:  # a closed pipe, a terminal that hung up
            self._reporter = Reporter()
