"""The build of the kernels: with a compiler, and without one."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fused_cases import SETS

from ltc_textgen.kernels import library

ROOT = Path(__file__).parents[2]


def build(folder, **environment):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return result, folder / library.PATH.relative_to(ROOT)


def test_without_a_compiler_the_build_continues_and_warns(tmp_path):
    result, built = build(tmp_path, CC="/nowhere/cc", CXX="/nowhere/c++")
    assert result.returncode == 0
    assert result.stderr.count("no CPU kernels, the slower PyTorch reference will run") == 1
    assert not built.exists()


@pytest.mark.slow
@pytest.mark.skipif(not SETS, reason="no compiler")
def test_the_library_needs_neither_python_nor_pytorch(tmp_path):
    result, built = build(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    ctypes.CDLL(str(built)).ltc_instruction_set.restype = ctypes.c_char_p
    needed = subprocess.run(["readelf", "-d", str(built)], capture_output=True, text=True, check=False).stdout
    assert "python" not in needed
    assert "torch" not in needed


@pytest.mark.skipif(not SETS, reason="no library")
def test_one_openmp_in_the_process():
    """PyTorch brings its libgomp; a second one would have threads of its own."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    runtimes = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line or "libomp" in line}
    assert len(runtimes) <= 1, runtimes


@pytest.mark.slow
@pytest.mark.skipif(not SETS, reason="no library")
def test_ltc_isa_chooses_the_instruction_set():
    script = "from ltc_textgen.kernels.library import instruction_set; print(instruction_set())"
    environment = os.environ | {"LTC_ISA": "baseline"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "baseline"


@pytest.mark.slow
@pytest.mark.skipif(not SETS, reason="no library")
def test_an_unknown_instruction_set_is_one_line():
    result = subprocess.run(
        [sys.executable, "-m", "ltc_textgen", "doctor"],
        env=os.environ | {"LTC_ISA": "neon"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "LTC_ISA" in result.stderr
    assert "baseline" in result.stderr
