"""A run whose stderr closes continues: a closed pipe, a terminal that hung up."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from training_runs import settings

from ltc_textgen.io.checked import read_json, write_json
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.loop import train
from ltc_textgen.training.report import PlainReporter, Reporter, SurvivingReporter
from ltc_textgen.training.signals import StopRequest


def test_a_run_whose_reader_has_gone_continues_to_its_end(corpus, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    with pytest.raises(BrokenPipeError):
        PlainReporter(stream).note("nobody reads this")
    reporter = SurvivingReporter(PlainReporter(stream))
    assert train(settings(corpus, max_steps=4), tmp_path / "run", reporter=reporter).step == 4
    with suppress(BrokenPipeError):
        stream.close()
    assert list_checkpoints(tmp_path / "run")[0].name == "step-00000004"


def test_everything_is_passed_on_and_other_errors_come_through():
    listener = []

    class Recording(Reporter):
        def __getattribute__(self, name):
            return lambda *given: listener.append((name, given))

    methods = {name for name in vars(Reporter) if not name.startswith("_")}
    given = {"checkpoint": (1, 2.0), "close": (), "note": ("text",), "start": ({},), "end": ({},)}
    surviving = SurvivingReporter(Recording())
    given |= dict.fromkeys(("step", "tokenizing", "validating", "validation"), (None,))
    assert methods == given.keys()
    for name in methods:
        getattr(surviving, name)(*given[name])
    assert sorted(listener, key=str) == sorted(given.items(), key=str)

    class Failing(Reporter):
        def note(self, text):
            raise KeyError(text)

    with pytest.raises(KeyError):
        SurvivingReporter(Failing()).note("a fault of the program is none of the pipe")


def test_a_closed_terminal_is_a_request_to_stop_but_not_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.name == "SIGHUP"
    finally:
        signal.signal(signal.SIGHUP, before)
    script = """
import os, signal
from ltc_textgen.training.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    print(stop.name)
"""
    shown = subprocess.run(
        ["nohup", sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
    )
    assert shown.stdout == "None\n"


def test_a_path_that_is_not_utf8_comes_back_from_the_files_of_a_run(tmp_path):
    """Under LANG=C such is every path with an accent."""
    path = os.fsdecode(b"text \xff.txt")
    write_json(tmp_path / "a.json", {"data": path, "plain": "\u00e9"})
    assert read_json(tmp_path / "a.json") == {"data": path, "plain": "\u00e9"}
