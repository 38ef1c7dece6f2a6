"""Run the CPU kernels over odd sizes under the address and undefined-behaviour sanitizers: `make sanitize`.

The program that runs is sanitize.cpp, next to this file. Exits with 1 and the sanitizer's report if it finds anything.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from setup import SOURCES, compilations  # noqa: E402

FLAGS = [
    "-std=c++17",
    "-O1",
    "-g",
    "-fopenmp",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-Wno-psabi",
]


def compile_one(source: Path, target: Path, flags: list[str]) -> str:
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, *FLAGS, *flags, f"-I{ROOT / SOURCES}", "-c", str(source), "-o", str(target)], check=True)
    return str(target)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder, sources = Path(name), ROOT / SOURCES
        jobs = [
            (sources / "api.cpp", folder / "api.o", []),
            (Path(__file__).with_suffix(".cpp"), folder / "main.o", []),
        ]
        for path, isa, flags in compilations(sources):
            jobs.append((path, folder / f"{isa}-{path.stem}.o", [*flags, f"-DLTC_ISA={isa}"]))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: compile_one(*job), jobs))
        program = folder / "sanitize"
        subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, *objects, "-o", str(program)], check=True)
        return subprocess.run([str(program)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
