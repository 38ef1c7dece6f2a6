import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from training_runs import Listener, assert_same_run, curve, settings

from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.loop import train
from ltc_textgen.training.nonfinite import LIMIT

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def torchrun(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(HERE), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*TORCHRUN, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def two(corpus, tmp_path_factory):
    """Results and run directories of the scenarios in distributed_runs."""
    out = tmp_path_factory.mktemp("two")
    process = torchrun(HERE / "distributed_runs.py", corpus, out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return json.loads((out / "results.json").read_text()), out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "adaptive", "starting"])
def test_two_processes_reach_the_loss_of_one_with_the_same_batch(two, corpus, tmp_path, name):
    results, out = two
    kinds = {"adaptive": {"head": "adaptive", "adaptive_cutoffs": [4, 16]}, "starting": {"learned_initial_state": True}}
    model = {"dropout": 0.0} | kinds.get(name, {})
    more = {"eval_steps": 10} if name == "plain" else {}
    one = train(
        settings(corpus, model, max_steps=30, learning_rate=0.02, **more), tmp_path / "one", reporter=Listener()
    )
    assert results[name]["best_val_loss"] == pytest.approx(one.best_val_loss, abs=2e-3)
    assert results[name]["tokens"] == one.tokens
    for ours, theirs in zip(curve(out / name), curve(tmp_path / "one"), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1] == (None if theirs[1] is None else pytest.approx(theirs[1], abs=2e-3))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_the_resumed_run_is_the_same(two):
    results, out = two
    assert results["stopped"]["stopped_by"] == "SIGTERM"
    assert results["stopped"]["step"] in (12, 13)
    assert results["resumed"]["step"] == 30
    assert_same_run(out / "parts", out / "whole")


@pytest.mark.slow
def test_nan_in_one_process_skips_the_step_in_both(two):
    results, out = two
    assert results["skipping"]["skipped"] == 3
    assert results["skipping"]["step"] == 30
    weights = load_file(out / "skipping" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
def test_nan_in_one_process_again_and_again_stops_both(two):
    results, out = two
    assert f"steps 12 to {11 + LIMIT}" in results["broken"]["error"]
    assert (out / "broken" / "nonfinite" / "process-1" / "window.safetensors").exists()
    newest = list_checkpoints(out / "broken")[0]
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())


@pytest.mark.slow
def test_a_killed_process_ends_the_job_in_seconds(corpus, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(f"""
import os, signal
from pathlib import Path
from training_runs import Listener, settings
from ltc_textgen.training import loop

original = loop._report_step
def report_step(session):
    original(session)
    if session.progress.step == 5 and session.runtime.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
loop._report_step = report_step
loop.train(settings(Path({str(corpus)!r}), max_steps=100_000, save_steps=2), Path({str(tmp_path / "run")!r}),
           reporter=Listener(lambda pace: print("made", pace.step, flush=True)))
""")
    process = torchrun(script)
    for line in process.stdout:
        if line.startswith("made 4"):
            break
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list_checkpoints(tmp_path / "run")[0].name == "step-00000004"
