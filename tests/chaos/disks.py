"""Disks that are full, cannot be written to, or give back other bytes than they were given."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from faults import MissError, NotHereError, Place, expect, fault
from training_runs import Listener

from ltc_textgen.errors import LTCError
from ltc_textgen.training.checkpoint import list_checkpoints, newest_checkpoint
from ltc_textgen.training.loop import train
from ltc_textgen.training.report import Pace

FULL_AT = 20


@fault(4, "disk full: a small file system", "one clear line, exit 1; old checkpoint whole, no temporary files; resumes")
def full_file_system(place: Place) -> str:
    with _mounted(place.fresh(), "8m") as disk:
        if disk is None:
            raise NotHereError("no right to mount a tmpfs here")

        def fill(pace: Pace) -> None:
            if pace.step == FULL_AT:
                with (disk / "ballast").open("wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                    except OSError as error:
                        expect(error.errno == errno.ENOSPC, error)

        message = _rejected(lambda: train(place.plan(), disk / "run", reporter=Listener(fill)))
        expect("o space left" in message or "disk" in message.lower(), message)
        _only_whole(disk / "run")
        (disk / "ballast").unlink()
        return f"rejected at step 21; {place.finish(disk / 'run')}"


@fault(4, "disk full: a quota, at every file of a checkpoint", "one clear line; old checkpoint whole; resumes")
def over_quota(place: Place) -> str:
    out = place.fresh() / "run"
    rejections, real = 0, os.fsync
    for allowed in range(40):
        calls = 0

        def fsync(descriptor: int, limit: int = allowed) -> None:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            real(descriptor)

        def meddle(pace: Pace, fsync: Callable[[int], None] = fsync) -> None:
            if pace.step == 5:
                os.fsync = fsync
            elif pace.step == 7:
                os.fsync = real
                os.kill(os.getpid(), signal.SIGTERM)

        shutil.rmtree(out, ignore_errors=True)
        try:
            message = _rejected(lambda: train(place.plan(), out, reporter=Listener(meddle)))
        except MissError:
            break  # all of the checkpoint fits into what is allowed
        finally:
            os.fsync = real
        expect("quota" in message.lower(), message)
        expect("step-00000003" in [path.name for path in list_checkpoints(out)], "the checkpoint before is gone")
        rejections += 1
        _only_whole(out)
    expect(rejections >= 7, f"only {rejections} places were hit")
    return f"rejected at {rejections} places; {place.finish(out)}"


@fault(4, "read-only directory", "one clear line, exit 1; nothing changed; resumes when writable")
def read_only(place: Place) -> str:
    out = place.fresh() / "run"
    place.stopped(30, out)
    before = _content(out)
    with _unwritable(out) as how:
        message = _rejected(lambda: train(place.plan(), out, resume=True, reporter=Listener()))
        expect(str(out) in message and "--out" in message, message)
    expect(_content(out) == before, "something changed")
    return f"rejected ({how}); {place.finish(out)}"


@fault(5, "truncated, empty and garbage files in a checkpoint", "rejected by name; the one before is used")
def damaged_files(place: Place) -> str:
    out = _stopped(place)
    cases = 0
    newest = list_checkpoints(out)[0]
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for damage in (content[: len(content) // 2], b"", os.urandom(256), bytes(len(content))):
            _replace(path, damage)
            _falls_back(out, path)
            cases += 1
        _replace(path, content)
    return f"{cases} damages rejected by name; {place.finish(out)}"


@fault(6, "a bit flip in each file of a checkpoint", "rejected by name; the one before gives the same weights")
def flipped_bits(place: Place) -> str:
    names = sorted(path.name for path in list_checkpoints(_stopped(place))[0].iterdir())
    for name in names:
        out = _stopped(place)
        path = list_checkpoints(out)[0] / name
        content = bytearray(path.read_bytes())
        content[place.draw.randrange(len(content))] ^= 1 << place.draw.randrange(8)
        _replace(path, bytes(content))
        _falls_back(out, path)
        place.finish(out)
    return f"{len(names)} files: {', '.join(names)}; each run gave the same weights to the bit"


def _stopped(place: Place) -> Path:
    """A copy of a run with two checkpoints, at step 33 and 30."""
    original = place.root / "stopped"
    if not original.exists():
        place.stopped(33, original)
    out = place.fresh() / "run"
    shutil.copytree(original, out)
    return out


def _replace(path: Path, content: bytes) -> None:
    path.unlink()  # best.safetensors is a second name of the run's own file
    path.write_bytes(content)


def _falls_back(out: Path, damaged: Path) -> None:
    notes: list[str] = []
    found = newest_checkpoint(out, notes.append)
    expect(found is not None and found.path.name == "step-00000030", f"{damaged.name} was believed")
    expect(len(notes) == 1 and damaged.name in notes[0], f"{damaged.name}: {notes}")


def _rejected(action: Callable[[], object]) -> str:
    try:
        action()
    except LTCError as error:
        expect(error.exit_code == 1, f"exit code {error.exit_code}")
        expect("\n" not in str(error), error)
        return str(error)
    raise MissError("no error")


def _only_whole(out: Path) -> None:
    """Every checkpoint is whole, and there is nothing half written."""
    expect(newest_checkpoint(out, lambda note: expect(False, note)), "no checkpoint is left")
    rubbish = [path.name for path in out.rglob("*") if ".tmp" in path.name]
    expect(not rubbish, f"left behind: {rubbish}")


def _content(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name[0] != "."}


@contextmanager
def _mounted(directory: Path, size: str) -> Iterator[Path | None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@contextmanager
def _unwritable(out: Path) -> Iterator[str]:
    """Make a directory read-only; for root by a mount, or where that is not allowed by failing calls."""
    if os.geteuid():
        out.chmod(0o555)
        try:
            yield "permissions"
        finally:
            out.chmod(0o755)
        return
    bound = ["mount", "--bind", str(out), str(out)]
    if not subprocess.run(bound, capture_output=True).returncode:
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(out)], check=True, capture_output=True)
            yield "read-only mount"
        finally:
            subprocess.run(["umount", str(out)], check=True)
        return
    failure = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with mock.patch("filelock._unix.os.open", side_effect=failure):
        yield "failing calls"
