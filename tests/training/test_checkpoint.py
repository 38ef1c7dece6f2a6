import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltc_textgen.errors import ArtifactError, LTCError
from ltc_textgen.training import checkpoint
from ltc_textgen.training.checkpoint import (
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    remove_leftovers,
    write_checkpoint,
)


def tensors(value=1.0, size=6):
    return {part: {"a": torch.full((size,), value), "b": torch.arange(3)} for part in checkpoint.PARTS}


def write(run, step, value=1.0, **more):
    return write_checkpoint(run, step, tensors(value), {"step": step}, **more)


def newest(run):
    notes = []
    return newest_checkpoint(run, notes.append), notes


def test_what_is_written_is_read(tmp_path):
    best = tmp_path / "model.safetensors"
    best.write_bytes(b"best weights")
    path = write(tmp_path, 12, 3.5, best=best)
    assert path == tmp_path / "checkpoints" / "step-00000012"
    found = read_checkpoint(path)
    assert found.progress == {"step": 12}
    for part in checkpoint.PARTS:
        assert torch.equal(found.tensors[part]["a"], torch.full((6,), 3.5))
    assert (path / checkpoint.BEST).read_bytes() == b"best weights"


def test_the_best_weights_survive_in_the_checkpoint_when_the_run_replaces_its_own(tmp_path):
    best = tmp_path / "model.safetensors"
    best.write_bytes(b"old")
    path = write(tmp_path, 1, best=best)
    replacement = tmp_path / "new"
    replacement.write_bytes(b"new")
    replacement.replace(best)
    assert (path / checkpoint.BEST).read_bytes() == b"old"
    read_checkpoint(path)


def test_without_hard_links_the_best_weights_are_copied(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    best = tmp_path / "model.safetensors"
    best.write_bytes(b"weights")
    assert (write(tmp_path, 1, best=best) / checkpoint.BEST).read_bytes() == b"weights"


def test_only_the_last_are_kept_and_newest_is_by_number(tmp_path):
    for step in (9, 100, 99_999_999, 100_000_000):
        write(tmp_path, step, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-100000000",
        "step-99999999",
        "step-00000100",
    ]


def test_pruning_comes_last(tmp_path, monkeypatch):
    write(tmp_path, 1, keep=1)

    def fail(*_):
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
        raise OSError(errno.EIO, "the rename fails")

    monkeypatch.setattr(checkpoint, "move_directory", fail)
    with pytest.raises(LTCError, match="step-00000001"):
        write(tmp_path, 2, keep=1)
    assert newest(tmp_path)[0].progress == {"step": 1}


FILES = [*sorted(f"{part}.safetensors" for part in checkpoint.PARTS), checkpoint.PROGRESS, "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "garbage", "missing"])
def test_damage_to_any_file_is_rejected_by_name_and_the_one_before_is_used(tmp_path, name, damage):
    write(tmp_path, 1)
    path = write(tmp_path, 2) / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        path.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        path.write_bytes(
            {"flip": flipped, "truncate": content[:middle], "empty": b"", "garbage": os.urandom(64)}[damage]
        )
    found, notes = newest(tmp_path)
    assert found.progress == {"step": 1}
    assert len(notes) == 1
    assert "\n" not in notes[0]
    assert name in notes[0]


def test_a_bit_flip_anywhere_in_the_manifest_is_rejected(tmp_path):
    path = write(tmp_path, 1, about={"config": "abc", "val_loss": 1.25})
    intact = (path / "manifest.json").read_bytes()
    for place in range(len(intact)):
        (path / "manifest.json").write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            read_checkpoint(path)


def test_a_checkpoint_of_the_first_format_whose_manifest_has_no_checksum_is_read(tmp_path):
    path = write(tmp_path, 1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    (path / "manifest.json").write_text(json.dumps({"format": "1", "files": files}))
    assert read_checkpoint(path).progress == {"step": 1}


def test_a_manifest_that_leaves_a_file_out_is_rejected(tmp_path):
    path = write(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    for files in ({k: v for k, v in manifest["files"].items() if k != "state.safetensors"}, [], None):
        (path / "manifest.json").write_text(json.dumps({"format": "1", "files": files}))
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            read_checkpoint(path)


def test_if_all_are_damaged_the_run_is_rejected_and_nothing_is_removed(tmp_path):
    for step in (1, 2):
        (write(tmp_path, step) / "state.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"step-00000002/state\.safetensors"):
        newest_checkpoint(tmp_path, lambda _: None)
    assert len(list_checkpoints(tmp_path)) == 2


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest(tmp_path) == (None, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["model", "optimizer", "state"])
def test_numbers_that_are_not_finite_are_never_written(tmp_path, part, value):
    write(tmp_path, 1)
    broken = tensors()
    broken[part]["a"][3] = value
    with pytest.raises(LTCError, match=f"step 2: {part}: a "):
        write_checkpoint(tmp_path, 2, broken, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    (write(tmp_path, 1) / "model.safetensors").write_bytes(b"x")
    write(tmp_path, 1, 2.0)
    assert newest(tmp_path)[0].tensors["model"]["a"][0] == 2.0
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_a_real_limit_on_file_size_leaves_the_old_checkpoint_and_no_rubbish(tmp_path):
    write(tmp_path, 1)
    script = f"""
import resource, signal, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
from test_checkpoint import tensors
from ltc_textgen.errors import LTCError
from ltc_textgen.training.checkpoint import write_checkpoint
try:
    write_checkpoint(Path({str(tmp_path)!r}), 2, tensors(size=100_000), {{}})
except LTCError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "step-" in result.stdout, result.stderr
    assert "step-00000001 is intact" in result.stdout
    assert result.stdout.count("\n") == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert newest(tmp_path)[0].progress == {"step": 1}


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs the right to mount")
def test_a_full_disk_leaves_the_old_checkpoint_and_no_rubbish(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write(disk, 1)
        with pytest.raises(LTCError, match=r"(?i)no space left.*step-00000001"):
            write_checkpoint(disk, 2, tensors(size=100_000), {})
        assert [path.name for path in (disk / "checkpoints").iterdir()] == ["step-00000001"]
        assert newest(disk)[0].progress == {"step": 1}
    finally:
        subprocess.run(["umount", disk], check=True)


def test_failing_at_any_system_call_leaves_a_usable_run(tmp_path, monkeypatch):
    """Every fsync, rename and mkdir fails in turn, as on a disk that dies at that moment."""
    real = {"fsync": os.fsync, "rename": os.rename, "replace": os.replace, "mkdir": os.mkdir}
    failures = 0
    for fatal in range(40):
        run = tmp_path / str(fatal)
        write(run, 1)
        calls = 0

        def failing(name, calls_before=fatal):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > calls_before:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, failing(name))
            before = failures
            try:
                write(run, 2, keep=1)
            except LTCError as error:
                failures += "No space left on device" in str(error)
        remove_leftovers(run)
        assert newest(run)[0].progress["step"] in (1, 2)
        if failures == before and calls <= fatal:
            break
    assert failures >= 8


KILLS = int(os.environ.get("LTC_TEST_KILLS", "3"))
KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from test_checkpoint import write
run = Path(sys.argv[2])
print("ready", flush=True)
for step in range(2, 100_000):
    write(run, step, float(step), keep=1)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_points_of_writing_there_is_always_a_whole_checkpoint(tmp_path):
    import random
    import time

    draw = random.Random(1)
    write(tmp_path, 1)
    last = 1
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.05, 0.25))
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0].split()
        reported = int(output[-1]) if output else last
        remove_leftovers(tmp_path)
        found, notes = newest(tmp_path)
        assert notes == []
        assert float(found.tensors["model"]["a"][0]) in (found.progress["step"], 1.0)
        assert found.progress["step"] >= reported or not output
        last = found.progress["step"]
        shutil.rmtree(tmp_path / "checkpoints")
        write(tmp_path, 1)
        last = 1


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    path = write(tmp_path, 1)
    (path.parent / ".tmp-step-00000002").mkdir()
    (path.parent / ".tmp-step-00000002" / "model.safetensors").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert [p.name for p in path.parent.iterdir()] == ["step-00000001"]


def test_one_that_was_set_aside_is_put_back_if_nothing_took_its_place(tmp_path, monkeypatch):
    """Killed between the two renames that replace a checkpoint by a newer one of the same step."""
    real, killed = Path.rename, []

    def kill(path, target):
        if target.name == "step-00000002":
            killed.append(target)
            raise KeyboardInterrupt
        return real(path, target)

    write(tmp_path, 1)
    write(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2, 5.0)
    assert killed
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    remove_leftovers(tmp_path)
    assert newest(tmp_path)[0].progress == {"step": 2}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2

    oldest = tmp_path / "checkpoints" / "step-00000001"
    oldest.rename(checkpoint._aside(oldest))  # killed while an old one was removed
    remove_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    for path in write(tmp_path, 1).iterdir():
        assert path.suffix in (".json", ".safetensors")
