"""Cause every fault that training must survive and print what came of it; exit 1 if anything else came than should.

    python tests/chaos/run.py [PART OF A NAME] [--kills N] [--injected]

Real processes are killed with SIGKILL, real file systems filled up, real bits flipped. The rows are those that the
project promises; where a row is about files and data rather than about a running training, its tests are run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "2000", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import disks  # noqa: E402, F401
import kills  # noqa: E402, F401
import processes  # noqa: E402, F401
import surroundings  # noqa: E402, F401
from faults import FAULTS, Fault, MissError, NotHereError, Place, fault  # noqa: E402

TESTED = {
    7: ("pickled weights", "rejected without being run", "tests/test_runs.py", "pickle"),
    8: (
        "config.json damaged or from elsewhere",
        "one line with its key",
        "tests/test_runs.py",
        "bad_configuration",
    ),
    9: ("weights that do not fit", "rejected by name", "tests/test_runs.py", "weights_of or do_not_fit"),
    10: ("another, tiny or missing tokenizer", "rejected", "tests/test_runs.py", "tokenizer or missing"),
    12: ("stiff, endless and zero time", "states bounded", "tests/layers/test_membrane_cells.py", "states or elapsed"),
    13: (
        "empty, binary, broken, endless text",
        "read or rejected, in little memory",
        "tests/data/test_text_files.py",
        "",
    ),
    14: (
        "broken parquet, rows without text",
        "rejected naming the file",
        "tests/data/test_rows.py",
        "parquet or rows",
    ),
    15: ("a hub that is dead, hangs or lies", "a helpful line in seconds", "tests/data/test_hub.py", "hub or download"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="?", default="", help="part of a fault's name")
    parser.add_argument("--kills", type=int, default=20, help="how often each kind of kill is repeated (default 20)")
    parser.add_argument("--injected", action="store_true", help="only faults injected here, not those that have tests")
    given = parser.parse_args()
    for row, (name, expected, path, words) in ({} if given.injected else TESTED).items():
        fault(row, name, expected)(lambda place, path=path, words=words: _run_tests(path, words))
    chosen = sorted((each for each in FAULTS if given.only in each.name), key=lambda each: each.row)
    root = Path(tempfile.mkdtemp(prefix="ltc-chaos-"))
    os.environ["LTC_CACHE"] = str(root / "cache")
    place, marks, began = Place(root, given.kills), [], time.monotonic()
    print("row  fault -> expected -> got", flush=True)
    try:
        for each in chosen:
            marks.append(_survive(each, place))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    skipped = f", {marks.count('skip')} not possible here" if "skip" in marks else ""
    print(f"\n{marks.count('ok')} of {len(chosen)} as expected{skipped}, in {time.monotonic() - began:.0f} s")
    return 1 if "MISS" in marks or "ok" not in marks else 0


def _survive(each: Fault, place: Place) -> str:
    start = time.monotonic()
    try:
        mark, got = "ok", each.cause(place)
    except MissError as error:
        mark, got = "MISS", str(error)
    except NotHereError as error:
        mark, got = "skip", str(error)
    except Exception as error:
        traceback.print_exc()
        mark, got = "MISS", f"{type(error).__name__}: {error}"
    lines = f"{each.name}\n          -> {each.expected}\n          -> {got}"
    print(f"{mark:<4} {each.row:>3}  {lines}  [{time.monotonic() - start:.1f} s]", flush=True)
    return mark


def _run_tests(path: str, words: str) -> str:
    command = [sys.executable, "-m", "pytest", path, "-k", words, "-o", "addopts=-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    if done.returncode:
        raise MissError(summary)
    return f"{path}: {summary}"


if __name__ == "__main__":
    sys.exit(main())
