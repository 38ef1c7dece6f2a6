import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltc_textgen.kernels import dispatch

HERE = Path(__file__).parent

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed here (pip install triton; Linux on x86_64)",
)

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ltc_textgen.kernels import triton_kernels
from ltc_textgen.kernels.triton_scan import BLOCK, LAUNCH
from ltc_textgen.kernels.library import SOLVER_CODES
for kernel in (triton_kernels.forward, triton_kernels.backward):
    for capability, precision in ((75, "fp32"), (90, "fp32"), (90, "fp64")):
        for code in SOLVER_CODES.values():
            constants = {"STEPS": 6, "SOLVER": code, "ADAPTIVE": capability == 90, "BLOCK": BLOCK}
            signature = {name: "*" + precision for name in kernel.arg_names} | {"T": "i32", "N": "i32"}
            source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
            binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=LAUNCH)
            assert binary.asm["cubin"]
            print(kernel.fn.__name__, capability, precision, code)
"""


def run(command, tmp_path, **environment):
    # Coverage of the child is not measured and its cache is its own: nothing of this process may decide its outcome.
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), **environment}
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=240, check=False)


@needs_triton
@pytest.mark.slow
def test_kernels_equal_the_reference_in_the_interpreter(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "triton_interpreter.py",
        "-o",
        "addopts=",
        "-q",
        "--noconftest",  # whose run-time checks would wrap functions that Triton reads the source of
        "-p",
        "no:cacheprovider",
    ]
    done = run(command, tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "23 passed" in done.stdout


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    done = run([sys.executable, "-W", "error", "-c", COMPILE], tmp_path, TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr[-5000:]
    assert len(done.stdout.splitlines()) == 24


def test_not_supported_without_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    dispatch.triton_problem.cache_clear()
    assert "Triton" in dispatch.triton_problem(torch.device("cuda", 0))
    dispatch.triton_problem.cache_clear()
