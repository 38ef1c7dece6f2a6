"""The generation benchmark: it runs, and the loops that measure the machine do all the work they are counted for."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.limits import build, limits

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

PROGRAM = """
import sys
from pathlib import Path
with Path(__file__).with_name("calls").open("a") as file:
    print(sys.argv[1:], file=file)
"""


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    built = build(tmp_path_factory.mktemp("limits"))
    if built is None:
        pytest.skip("no C compiler")
    library = ctypes.CDLL(str(built))
    library.stream.restype = library.arithmetic.restype = ctypes.c_float

    def call(name, values, times, threads):
        assert values.data_ptr() % 64 == 0
        address, count = ctypes.c_void_p(values.data_ptr()), ctypes.c_size_t(len(values))
        return getattr(library, name)(address, count, ctypes.c_long(times), ctypes.c_int(threads))

    return library.lanes(), call


def aligned(values):
    room = torch.empty(len(values) + 16)
    start = (-room.data_ptr() % 64) // 4
    room[start : start + len(values)] = values
    return room[start : start + len(values)]


@pytest.mark.parametrize("threads", [1, 2])
def test_every_chain_of_the_arithmetic_is_computed(loops, threads):
    lanes, call = loops
    values = torch.rand(256)
    width = lanes // 10
    chains, x, y = values[:lanes].view(10, width), values[lanes:][:width], values[lanes + width :][:width]
    for _ in range(3):
        chains = x * chains + y
    assert call("arithmetic", aligned(values), 3, threads) == pytest.approx(threads * chains.sum().item(), rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_everything_is_read_every_time(loops, threads):
    values = torch.rand(128 * 6)
    assert loops[1]("stream", aligned(values), 5, threads) == pytest.approx(5 * values.sum().item(), rel=1e-4)


def test_without_a_compiler_there_are_no_limits(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert limits(1 << 20, 1) is None


@pytest.mark.slow
def test_the_decoding_benchmark_runs_and_ends_with_json(tmp_path):
    (tmp_path / "generate.py").write_text(PROGRAM)
    command = [sys.executable, str(BENCHMARKS / "decode.py"), "--quick", "--million", "--export", str(tmp_path)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr[-3000:]
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    speeds = result["tokens_per_second"]
    assert set(speeds) == {"torch", "transformers generate"} | {
        f"{engine}, batch {batch}" for engine in ("native", "int8") for batch in (1, 3)
    }
    assert min(speeds.values()) > 0
    assert result["ratios"]["torch"] == pytest.approx(speeds["native, batch 1"] / speeds["torch"])
    assert result["million"].keys() == {"native", "int8"}
    assert (tmp_path / "calls").read_text().splitlines() == ["['a', '--max-tokens', '1']"] * 5
    assert result["cold_start_seconds"]["exported program"] > 0
    assert any(line.startswith("exported program") for line in table)
    if result["roofline"]:
        roofline = result["roofline"]
        ceiling = roofline["multiplications_per_second"] / (roofline["weight_bytes"] / 4)
        assert roofline["batched_ceiling"] == pytest.approx(ceiling)
        reading = roofline["bytes_per_second"] / roofline["weight_bytes"]
        assert roofline["batch64_over_batch1_ceiling"] == pytest.approx(ceiling / reading)
