import io
import json
import os
import pty

import pytest
from rich.console import Console

from ltc_textgen.training import report
from ltc_textgen.training.report import (
    JsonReporter,
    LiveReporter,
    Pace,
    PlainReporter,
    Validation,
    clock,
    describe_validation,
    make_reporter,
)

PACE = Pace(12, 300, 0.04, 2.345, 1e-3, 20_123.4, 5.0, 61.0)
RESULT = Validation(12, 2.5, 2.25, True, 5.0, "the cat\nsat")


def test_plain_lines_hold_the_figures_and_no_control_characters():
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.note("hello")
    reporter.step(PACE)
    reporter.step(PACE)
    reporter.validation(RESULT)
    reporter.close()
    text = stream.getvalue()
    assert text.splitlines() == [
        "hello",
        "step 12/300  loss 2.345  20,123 tokens/s  1:01 left",
        "step 12  validation loss 2.5000  train loss 2.2500  gap +0.2500  (best so far)",
        "  | the cat",
        "  | sat",
    ]
    assert "\x1b" not in text
    assert "\r" not in text


def test_json_events_are_one_object_a_line():
    stream = io.StringIO()
    reporter = JsonReporter(stream)
    reporter.note("hello")
    reporter.step(PACE)
    reporter.step(PACE)
    reporter.validating(12, 4000)
    reporter.validation(RESULT)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["note", "step", "validating", "validation"]
    assert events[1]["tokens_per_second"] == 20_123.4
    assert events[3]["gap"] == pytest.approx(0.25)
    assert events[3]["sample"] == "the cat\nsat"


def test_on_a_terminal_there_is_a_bar_and_the_cursor_stays():
    stream = io.StringIO()
    reporter = LiveReporter(Console(file=stream, force_terminal=True, width=100))
    reporter.note("before")
    assert stream.getvalue() == "before\n", "a run that is rejected leaves no bar behind"
    reporter.step(PACE)
    shown = stream.getvalue()
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "hidden cursor: a killed run would leave it so"
    reporter.note("hello")
    reporter.validating(12, 4000)
    reporter.validation(RESULT)
    reporter.close()
    text = stream.getvalue()
    for expected in ("12/300", "validating on 4,000", "20,123 tokens/s", "hello", "2.5000", "the cat"):
        assert expected in text


def test_markup_in_samples_is_text():
    stream = io.StringIO()
    reporter = LiveReporter(Console(file=stream, force_terminal=True, width=100))
    reporter.validation(Validation(1, 2.5, None, False, 5.0, "[red]not markup[/red] [/oops]"))
    reporter.close()
    assert "[red]not markup[/red] [/oops]" in stream.getvalue()


def test_the_stream_decides():
    assert type(make_reporter(stream=io.StringIO())) is PlainReporter
    assert type(make_reporter(as_json=True, stream=io.StringIO())) is JsonReporter


def test_a_terminal_gets_the_bar_and_a_dumb_one_does_not(monkeypatch):
    leader, follower = pty.openpty()
    try:
        with os.fdopen(follower, "w") as terminal:
            monkeypatch.setenv("TERM", "xterm")
            reporter = make_reporter(stream=terminal)
            reporter.close()
            assert type(reporter) is LiveReporter
            monkeypatch.setenv("TERM", "dumb")
            assert type(make_reporter(stream=terminal)) is PlainReporter
    finally:
        os.close(leader)


def test_without_training_loss_there_is_no_gap():
    assert Validation(1, 2.5, None, False, 5.0, None).gap is None
    assert describe_validation(Validation(1, 2.5, None, False, 5.0, None)) == "step 1  validation loss 2.5000"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599.0, "59:59"), (3661.0, "1:01:01")])
def test_durations(seconds, text):
    assert clock(seconds) == text


def test_plain_lines_come_seldom(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    for _ in range(100):
        now[0] += 0.5
        reporter.step(PACE)
    assert len(stream.getvalue().splitlines()) == 10
