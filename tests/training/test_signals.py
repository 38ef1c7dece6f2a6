import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ltc_textgen.training.signals import StopRequest, exit_code

WAIT = """
import sys, time
from ltc_textgen.training.signals import StopRequest
with StopRequest(launched=sys.argv[1] == "launched") as stop:
    print("ready", flush=True)
    while stop.number is None:
        time.sleep(0.01)
    print(stop.name, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_kept_and_reported(number, code):
    reported = []
    before = signal.getsignal(number)
    with StopRequest(reported.append, launched=False) as stop:
        assert (stop.number, stop.name) == (None, None)
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert (stop.number, stop.name) == (number, number.name)
    assert reported == [number.name]
    assert signal.getsignal(number) is before
    assert exit_code(number.name) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(number):
    process = subprocess.Popen([sys.executable, "-c", WAIT, "alone"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == -number


def test_a_launchers_echo_of_the_signal_does_not_force():
    process = subprocess.Popen([sys.executable, "-c", WAIT, "launched"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.kill()
    process.communicate()


def test_outside_the_main_thread_it_does_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append((stop.number, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(None, True)]
