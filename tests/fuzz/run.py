"""Feed mutated files to everything that reads one: `python tests/fuzz/run.py --inputs 10000 --seed 1 [--only FORMAT]`.

Each input must end within ten seconds and 1 GB of memory in success or a documented error (exit codes 0 to 4): no
traceback, internal error, crash or hang. Prints a line for each format; keeps failing inputs and exits with 1.
An input depends only on the seed, the format and its number, so a failure can be repeated with --only, --seed and --at.
"""

import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from targets import NEEDS, TARGETS, WEIGHTS, build

Task = tuple[str, int]
"""A format and the number of an input."""

SECONDS, HANGS, MEMORY = 10.0, 60.0, 2**30
"""Limits of one input: seconds of processor time, seconds that pass, growth in bytes."""


def attempt(name: str, seed: int, number: int, base: Path, directory: Path) -> str | None:
    """Run one input; returns what is wrong, None if nothing."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for part in NEEDS.get(name, ("plain",)):
        source = base / part
        if source.is_dir():
            shutil.copytree(source, directory / part)
        else:
            shutil.copyfile(source, directory / part)
    chance = random.Random(f"{name} {seed} {number}")
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = TARGETS[name](chance, directory)
        err.flush()
        text = err.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}\n{''.join(traceback.format_exception(error)[-6:])}"
    if code not in range(5) or "internal error" in text or "Traceback" in text:
        return f"exit code {code}: {text[-500:]}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY:
        return f"{grown / 2**30:.1f} GiB of memory"
    if (passed := time.process_time() - begin) > SECONDS:
        return f"{passed:.0f} seconds"
    return None


def work(tasks: list[Task], seed: int, base: Path, directory: Path, pipe: Connection) -> None:
    """A process that tries inputs one after the other, and reports each with its seconds."""
    os.environ |= {"LTC_CACHE": str(directory / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    os.environ.pop("LTC_DEBUG", None)
    warnings.simplefilter("ignore")
    log = os.open(directory / "stderr.txt", os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):  # what libraries in C++ and Rust print
        os.dup2(log, descriptor)
    import torch

    for name in ("training.loop", "evaluation", "export", "generation", "data.corpora", "hf.modeling"):
        importlib.import_module(f"ltc_textgen.{name}")
    importlib.import_module("datasets")
    torch.set_num_threads(1)
    used = Path("/proc/self/statm").read_text().split()[0] if Path("/proc/self/statm").exists() else "0"
    limit = int(used) * os.sysconf("SC_PAGE_SIZE") + 6 * MEMORY  # address space, much of which is never used
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name in dict.fromkeys(name for name, _ in tasks):  # the first input of a format imports what it needs
        attempt(name, seed, -1, base, directory / "input")
    pipe.send(None)
    for name, number in tasks:
        begin = time.monotonic()
        fault = attempt(name, seed, number, base, directory / "input")
        pipe.send((fault, time.monotonic() - begin))
        if fault:
            pipe.recv()  # the input was copied


@dataclass
class Tally:
    """Inputs, seconds and faults of a format."""

    inputs: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def fuzz(tasks: list[Task], seed: int, base: Path, scratch: Path, kept: Path, tallies: dict[str, Tally]) -> None:
    """Try inputs in a process; one that dies or hangs is replaced by another, which continues after that input."""
    context, done = multiprocessing.get_context("spawn"), 0
    while done < len(tasks):
        directory = Path(tempfile.mkdtemp(dir=scratch))
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(tasks[done:], seed, base, directory, theirs), daemon=True)
        process.start()
        theirs.close()
        fault: str | None = None
        try:
            ours.recv()  # everything is imported
            while done < len(tasks):
                fault, seconds = ours.recv() if ours.poll(HANGS) else (f"hangs for {HANGS:.0f} seconds", HANGS)
                record(tallies, tasks[done], fault, seconds, seed, directory, kept)
                done += 1
                if fault and fault.startswith("hangs"):
                    break
                if fault:
                    ours.send(None)
        except (EOFError, OSError):
            process.join(10)
            record(tallies, tasks[done], f"crash, exit code {process.exitcode}", 0.0, seed, directory, kept)
            done += 1
        process.kill()
        process.join()
        shutil.rmtree(directory, ignore_errors=True)


def record(
    tallies: dict[str, Tally], task: Task, fault: str | None, seconds: float, seed: int, directory: Path, kept: Path
) -> None:
    """Count an input; of one that fails, note the fault and copy the input, of a format the first twenty."""
    name, number = task
    tally = tallies[name]
    tally.inputs += 1
    tally.seconds += seconds
    if not fault:
        return
    tally.faults.append(f"{name}, --seed {seed} --at {number}: {fault}")
    if len(tally.faults) <= 20 and (directory / "input").exists():
        target = kept / f"{name}-{seed}-{number}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(directory / "input", target, symlinks=True)
        (target / "fault.txt").write_text(fault, errors="backslashreplace")


def campaign(
    inputs: int, seed: int, names: list[str], kept: Path, processes: int, at: int | None = None
) -> dict[str, Tally]:
    """Fuzz formats in several processes, each of which takes its part of every format."""
    total = sum(WEIGHTS.get(name, 1.0) for name in names)
    tallies = {name: Tally() for name in names}
    tasks: list[Task] = []
    for name in names:
        count = max(1, round(inputs * WEIGHTS.get(name, 1.0) / total))
        tasks += [(name, number) for number in (range(count) if at is None else [at])]
    with tempfile.TemporaryDirectory(prefix="ltc-fuzz-") as folder:
        base = Path(folder) / "base"
        build(base, names)
        with ThreadPoolExecutor(processes) as pool:
            parts = [tasks[part::processes] for part in range(processes)]
            list(pool.map(lambda part: fuzz(part, seed, base, Path(folder), kept, tallies), parts))
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000, help="inputs of all formats together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(TARGETS), action="append", help="a format; may be repeated")
    parser.add_argument("--at", type=int, help="only the input of this number")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "ltc-fuzz-faults")
    options = parser.parse_args()
    names = options.only or list(TARGETS)
    tallies = campaign(options.inputs, options.seed, names, options.keep, options.processes, options.at)
    for name, tally in tallies.items():
        rate = tally.inputs / max(tally.seconds, 1e-9)
        print(f"{name:18} {tally.inputs:7,} inputs {rate:7.0f}/s  {len(tally.faults)} faults")
    for tally in tallies.values():
        print(*tally.faults[:20], sep="\n", end="\n" if tally.faults else "")
    return 1 if any(tally.faults for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
