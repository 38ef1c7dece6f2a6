import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltc_textgen.errors import LTCError
from ltc_textgen.training.run_lock import HOLDER_FILE, LOCK_FILE, DirectoryLockedError, lock_run

HOLD = """
import sys, time
from pathlib import Path
from ltc_textgen.training.run_lock import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_the_error_of_a_second_process_names_the_holder(holder, tmp_path):
    with pytest.raises(DirectoryLockedError, match=str(holder.pid)) as caught, lock_run(tmp_path / "run"):
        pass
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_lock_whose_holder_was_killed_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / HOLDER_FILE).exists(), "the dead process left its note"
    with lock_run(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / HOLDER_FILE).read_text())["pid"] == os.getpid()


def test_two_runs_in_one_process_exclude_each_other_too(tmp_path):
    with (
        lock_run(tmp_path / "run"),
        pytest.raises(DirectoryLockedError, match=str(os.getpid())),
        lock_run(tmp_path / "run"),
    ):
        pass


def test_rejecting_the_second_does_not_release_the_first(tmp_path):
    with lock_run(tmp_path / "run"):
        for _ in range(2):
            with pytest.raises(DirectoryLockedError), lock_run(tmp_path / "run"):
                pass
        assert (tmp_path / "run" / HOLDER_FILE).exists()


def test_a_directory_that_got_nothing_is_removed_again(tmp_path):
    with lock_run(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    with lock_run(tmp_path / "used"):
        (tmp_path / "used" / "result").touch()
    assert (tmp_path / "used" / "result").exists()
    assert not (tmp_path / "used" / HOLDER_FILE).exists()
    (tmp_path / "before").mkdir()
    with lock_run(tmp_path / "before"):
        pass
    assert (tmp_path / "before" / LOCK_FILE).exists()


def test_a_disk_that_fails_meanwhile_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(30, "Read-only file system")

    def break_down():
        with lock_run(tmp_path / "run"):
            patch.setattr(Path, "unlink", fail)
            raise KeyError

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        break_down()
    with lock_run(tmp_path / "run"):
        pass


def test_a_place_that_cannot_be_written_to_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LTCError, match="run: .*Not a directory") as caught:
        lock_run(tmp_path / "file" / "run").__enter__()
    assert "\n" not in str(caught.value)
