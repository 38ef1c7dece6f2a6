"""Build of the CPU kernels; everything else about the package is in pyproject.toml.

The sources in ltc_textgen/kernels/csrc are plain C++17 (no PyTorch, no Python headers) and become one shared library,
loaded with ctypes. Each is compiled once per instruction set. Without a compiler the package installs all the same and
runs on the PyTorch reference.
"""

import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError

SOURCES = Path("ltc_textgen/kernels/csrc")
LIBRARY = "ltc_textgen.kernels._liquid"
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]
X86_SETS = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}
ONCE = ("api.cpp", "memory.cpp", "mixture.cpp")
"""Sources that are compiled once: the choice among the instruction sets, and what no set makes faster."""
DECODER_SETS = {"avx512vnni": [*X86_SETS["avx512"], "-mavx512vnni"]}
"""Sets that only the decoder is compiled for; its products of bytes gain by them."""


def instruction_sets() -> dict[str, list[str]]:
    """Name of every instruction set to compile for -> its flags."""
    return {"baseline": [], **(X86_SETS if on_x86() else {})}


def on_x86() -> bool:
    """Whether this is built for a processor that has the sets of x86."""
    return platform.machine().lower() in {"x86_64", "amd64"}


def compilations(sources: Path) -> list[tuple[Path, str, list[str]]]:
    """Every (source, instruction set, flags of the set) but those of `ONCE`, which are compiled for none."""
    kernels = sorted(path for path in sources.glob("*.cpp") if path.name not in ONCE)
    jobs = [(source, name, flags) for name, flags in instruction_sets().items() for source in kernels]
    return jobs + [(sources / "decoder.cpp", name, flags) for name, flags in DECODER_SETS.items() if on_x86()]


class BuildKernels(build_ext):
    """Compile every source for every instruction set, link one library, and continue without it if that fails."""

    def get_ext_filename(self, fullname: str) -> str:
        """No Python version in the name: the library does not know Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except (CCompilerError, CompileError, LinkError, ExecError, PlatformError, OSError) as error:
            print(f"warning: no CPU kernels, the slower PyTorch reference will run: {error}", file=sys.stderr)

    def _build(self, ext: Extension) -> None:
        threads = self._thread_flags()
        jobs = [(str(SOURCES / name), "once", FLAGS + threads) for name in ONCE]
        for source, name, flags in compilations(SOURCES):
            jobs.append((str(source), name, [*FLAGS, *threads, *flags, f"-DLTC_ISA={name}"]))
        with ThreadPoolExecutor() as pool:
            objects = [path for paths in pool.map(lambda job: self._compile(*job), jobs) for path in paths]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(target), extra_postargs=threads, target_lang="c++")

    def _compile(self, source: str, name: str, flags: list[str]) -> list[str]:
        folder = str(Path(self.build_temp) / name)
        return self.compiler.compile([source], output_dir=folder, extra_postargs=flags, depends=ext_headers())

    def _thread_flags(self) -> list[str]:
        """OpenMP if the compiler has it; Apple's does not, and the kernels then run on one thread."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.cpp"
            probe.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() > 0 ? 0 : 1; }\n")
            try:
                objects = self.compiler.compile([str(probe)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, str(Path(folder) / "probe"), extra_postargs=["-fopenmp"])
            except (CompileError, LinkError):
                return []
        return ["-fopenmp"]


class AnyPythonWheel(bdist_wheel):
    """The library depends on the platform, not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def ext_headers() -> list[str]:
    """Sources whose change makes every object stale."""
    return sorted(str(path) for path in SOURCES.glob("*.h"))


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                LIBRARY, sorted(str(path) for path in SOURCES.glob("*.cpp")), depends=ext_headers(), optional=True
            )
        ],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPythonWheel},
    )
