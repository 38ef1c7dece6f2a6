"""Several processes on one run: two runs in one directory, and processes of one run of which one fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from faults import Place, expect, fault
from training_runs import Listener, Process, last_weights, same_tensors

from ltc_textgen.errors import UsageError
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.loop import train

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
PORT = ["--main_process_port", "0"]


@fault(16, "two runs on one directory; a lock whose holder was killed", "second exits 1 naming the first; recovered")
def two_runs(place: Place) -> str:
    out = place.fresh() / "run"
    first = Process(place.plan(max_steps=100_000, save_steps=1000, eval_steps=100_000), out)
    first.wait_for("made 2")
    second = Process(place.plan(), out)
    code = second.end()
    expect(code == 1 and any(f"process {first.pid} on " in line for line in second.lines), (code, second.lines))
    first.send(signal.SIGKILL)
    first.end()
    expect((out / ".lock-holder.json").exists(), "the killed one left no note: this shows nothing")
    return f"rejected naming {first.pid}; after its death {place.finish(out)}"


@fault(17, "resumed with another corpus, batch or model", "rejected; with the flag resumed with a warning")
def other_settings(place: Place) -> str:
    original = place.fresh() / "run"
    train(place.plan(max_steps=30), original, reporter=Listener())
    text = place.root / "other.txt"
    text.write_text(place.corpus.read_text()[::-1])
    other = place.plan()
    runs = {
        "corpus": other.model_copy(update={"data": other.data.model_copy(update={"data": str(text)})}),
        "batch": place.plan(batch_size=8),
        "model": other.model_copy(update={"model": {**other.model, "dropout": 0.0}}),
    }
    for name, run in runs.items():
        out = place.fresh() / "run"
        shutil.copytree(original, out)
        try:
            train(run, out, resume=True, reporter=Listener())
        except UsageError as error:
            expect("--resume-anyway" in str(error), error)
        else:
            expect(False, f"another {name} was accepted")
        listener = Listener()
        result = train(run, out, resume=True, anyway=True, reporter=listener)
        expect(listener.paces[0].step == 31 and result.step == 60, f"{name}: went from {listener.paces[0].step}")
        expect(any(" although " in note for note in listener.notes), f"{name}: no warning")
    return f"{', '.join(runs)}: rejected, then resumed from step 30 with a warning"


@fault(11, "NaN in one of two processes, in 3 steps and then in all", "both skip; both stop after 10, with a dump")
def nan_on_one_rank(place: Place) -> str:
    results, out = _two(place, "nan")
    expect(results["skipping"]["skipped"] == 3 and results["skipping"]["step"] == 30, results)
    expect("12 to 21" in results["broken"]["error"], results["broken"])
    expect((out / "broken" / "nonfinite" / "process-1" / "window.safetensors").exists(), "no dump")
    for name in ("skipping", "broken"):
        finite = all(bool(tensor.isfinite().all()) for tensor in last_weights(out / name).values())
        expect(finite, f"{name}: a checkpoint holds numbers that are not finite")
    return "3 skipped in both; stopped at step 21 with a dump; checkpoints finite"


@fault(17, "resumed with another number of processes", "rejected; with the flag the batch rows are redistributed")
def other_world(place: Place) -> str:
    from scenarios import plan

    results, out = _two(place, "world")
    expect(re.search("processes .*2.*1", results["rejected"]["error"]), results["rejected"])
    expect(results["grown"]["step"] == 30, results["grown"])
    listener = Listener()
    small = place.plan(max_steps=40, save_steps=3, eval_steps=20)
    run = small.model_copy(update={"model": {**small.model, "dropout": 0.0}})
    result = train(run, out / "grown", resume=True, anyway=True, reporter=listener)
    expect(listener.paces[0].step == 31 and result.step == 40, listener.notes)
    train(plan(place.corpus, dropout=0.0), out / "alone", resume=True, reporter=Listener())
    alone = train(run, out / "alone", resume=True, reporter=Listener())
    apart = abs(result.val_loss - alone.val_loss)
    expect(apart < 2e-3, f"loss {result.val_loss:.4f}, in one process all along {alone.val_loss:.4f}")
    return f"1 -> 2 -> 1 processes: loss {result.val_loss:.4f}, in one all along {alone.val_loss:.4f}"


@fault(18, "one of two processes killed", "the job ends in seconds, code not 0; checkpoint whole")
def killed_rank(place: Place) -> str:
    out = place.fresh()
    start = time.monotonic()
    output, code = _launch(TORCHRUN, place, "killed", out)
    seconds = time.monotonic() - float(re.findall(r"killed at ([\d.]+)", output)[-1])
    expect(code != 0, "exit 0")
    expect(seconds < 30 and start, f"ended {seconds:.0f} s later")
    expect(list_checkpoints(out / "run")[0].name == "step-00000009", list_checkpoints(out / "run"))
    return f"ended {seconds:.1f} s after the kill, exit {code}"


@fault(18, "one of two processes hangs (SIGSTOP); a long validation", "the job ends when patience does; is waited for")
def hung_rank(place: Place) -> str:
    out = place.fresh()
    output, code = _launch(TORCHRUN, place, "hung", out)
    expect(code != 0, "exit 0")
    error = json.loads((out / "results.json").read_text())["hung"].get("error", "none")
    expect(re.search(r"minutes.*--resume", error), error + output[-2000:])
    expect(list_checkpoints(out / "run")[0].name == "step-00000009", list_checkpoints(out / "run"))
    return "a validation longer than the patience was waited for; then one line, and the checkpoint is whole"


@fault(18, "processes killed under torchrun --max-restarts 3", "resumes from the checkpoint; same weights")
def elastic_restart(place: Place) -> str:
    out = place.fresh()
    output, code = _launch([*TORCHRUN, "--max-restarts", "3"], place, "elastic", out)
    expect(code == 0, output[-2000:])
    restarts = len(set(re.findall(r"killed at [\d.]+", output)))
    expect(restarts == 2, f"{restarts} kills")
    whole = _whole_of_two(place)
    same_tensors(*(list_checkpoints(run)[0] / "model.safetensors" for run in (out / "run", whole)))
    return "2 kills, 2 restarts, same weights to the bit"


@fault(18, "accelerate launch --multi_gpu on CPUs; --cpu", "2 real processes, same weights; --cpu is rejected")
def accelerate_launch(place: Place) -> str:
    out = place.fresh()
    output, code = _launch([*ACCELERATE, *PORT], place, "whole", out)
    expect(code == 0, output[-2000:])
    whole = _whole_of_two(place)
    same_tensors(*(list_checkpoints(run)[0] / "model.safetensors" for run in (out / "run", whole)))
    alone = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    output, code = _launch(alone, place, "whole", place.fresh())
    expect(code != 0 and "torchrun --nproc_per_node" in output, output[-500:])
    return "same weights as under torchrun; one silent process rejected"


@fault(18, "two processes with a disk each, and with different settings", "sent the checkpoint; same weights; rejected")
def separate_disks(place: Place) -> str:
    whole, out = _whole_of_two(place), place.fresh()
    shutil.copytree(whole, out / "run")
    shutil.rmtree(list_checkpoints(out / "run")[0])
    output, code = _launch(TORCHRUN, place, "apart", out)
    expect(code == 0, output[-2000:])
    same_tensors(*(list_checkpoints(run)[0] / "model.safetensors" for run in (out / "run", whole)))
    error = json.loads((out / "results.json").read_text())["disagreeing"]["error"]
    expect("process 1" in error and "max_steps" in error and "31, not 30" in error, error)
    return "same weights to the bit; other settings rejected by name"


def _launch(command: list[str], place: Place, scenario: str, out: Path) -> tuple[str, int]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    arguments = [str(HERE / "scenarios.py"), scenario, str(place.corpus), str(out)]
    done = subprocess.run(
        [*command, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.stdout, done.returncode


def _two(place: Place, scenario: str) -> tuple[dict, Path]:
    out = place.fresh()
    if scenario == "world":
        from scenarios import plan

        train(plan(place.corpus, dropout=0.0, max_steps=15), out / "grown", reporter=Listener())
        shutil.copytree(out / "grown", out / "alone")
    output, code = _launch(TORCHRUN, place, scenario, out)
    expect(code == 0, output[-2000:])
    return json.loads((out / "results.json").read_text()), out


def _whole_of_two(place: Place) -> Path:
    """The uninterrupted run of two processes."""
    out = place.root / "whole-of-two"
    if not out.exists():
        output, code = _launch(TORCHRUN, place, "whole", out)
        expect(code == 0, output[-2000:])
    return out / "run"
