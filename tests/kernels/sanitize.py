"""Run the CPU kernels under the address and undefined-behaviour sanitizers: `make sanitize`.

First sanitize.cpp, next to this file: every kernel over odd sizes, in arrays exactly as large as it may touch. Then
fuzz_operators.py: the Python bindings with wrong arguments, on a library built with the address sanitizer. Exits with 1
and the sanitizer's report if it finds anything.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from setup import ONCE, SOURCES, compilations  # noqa: E402

FLAGS = [
    "-std=c++17",
    "-O1",
    "-g",
    "-fopenmp",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-Wno-psabi",
]


Job = tuple[Path, Path, list[str]]
"""Source, object file, flags."""


def compiler() -> str:
    """The C++ compiler."""
    return os.environ.get("CXX", "g++")


def kernel_jobs(folder: Path, flags: list[str]) -> list[Job]:
    """All compilations of the library."""
    sources = ROOT / SOURCES
    jobs = [(sources / name, folder / f"{name}.o", flags) for name in ONCE]
    for path, isa, own in compilations(sources):
        jobs.append((path, folder / f"{isa}-{path.stem}.o", [*flags, *own, f"-DLTC_ISA={isa}"]))
    return jobs


def build(jobs: list[Job]) -> list[str]:
    """Compile side by side; returns the object files."""

    def one(job: Job) -> str:
        source, target, flags = job
        command = [compiler(), *flags, f"-I{ROOT / SOURCES}", "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, jobs))


def run_program(folder: Path) -> int:
    """Build sanitize.cpp with every kernel, and run it."""
    jobs = [*kernel_jobs(folder, FLAGS), (Path(__file__).with_suffix(".cpp"), folder / "main.o", FLAGS)]
    objects = build(jobs)
    program = folder / "sanitize"
    subprocess.run([compiler(), *FLAGS, *objects, "-o", str(program)], check=True)
    return subprocess.run([str(program)], check=False).returncode


def run_bindings(folder: Path) -> int:
    """Build the shared library with the address sanitizer in a copy of the package, and call its operators wrongly."""
    runtime = subprocess.run(
        [compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).exists():
        print("the compiler has no libasan.so: the bindings were not tried", file=sys.stderr)
        return 0
    package = folder / "ltc_textgen"
    shutil.copytree(ROOT / "ltc_textgen", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    flags = ["-std=c++17", "-O1", "-g", "-fopenmp", "-fsanitize=address", "-fPIC", "-fvisibility=hidden", "-Wno-psabi"]
    library = package / "kernels" / "_liquid.so"
    subprocess.run([compiler(), *flags, "-shared", *build(kernel_jobs(folder, flags)), "-o", str(library)], check=True)
    environment = os.environ | {
        "LD_PRELOAD": os.path.realpath(runtime),
        "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1",
        "PYTHONPATH": str(folder),
        "PYTHONSAFEPATH": "1",
    }
    script = Path(__file__).with_name("fuzz_operators.py")
    return subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=False, env=environment).returncode


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name) / "program", Path(name) / "bindings"
        first.mkdir()
        second.mkdir()
        return run_program(first) or run_bindings(second)


if __name__ == "__main__":
    sys.exit(main())
