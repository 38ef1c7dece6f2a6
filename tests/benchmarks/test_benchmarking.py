import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ltc_textgen import benchmarking
from ltc_textgen.benchmarking import Contender
from ltc_textgen.config import Coupling
from ltc_textgen.kernels import dispatch

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed.py"


EXPECTED_BARS = (
    "1 sub-step, against nn.LSTM",
    "full layer, 2 sub-steps, against nn.LSTM",
    "diagonal scan alone against the same mathematics in PyTorch",
    "synaptic, fully connected, against ncps LTC",
    "synaptic, AutoNCP, against ncps LTC",
    "activations kept",
    "peak resident memory",
    "cost per token over sequence length",
    "cost per neuron over width",
    "2 threads against 1",
    "float32 outputs",
    "float32 gradients",
)


class Clock:
    """Time that passes only where a call says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.order = []
        monkeypatch.setattr(benchmarking, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def call(self, name, lasts):
        def run():
            self.order.append(name)
            self.now += lasts

        return run


def test_race_times_every_contender_in_every_round(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {"slow": clock.call("slow", 3.0), "fast": clock.call("fast", 0.5)}
    taken = benchmarking.race(calls, rounds=3, seconds=0.0)
    assert clock.order == ["slow", "fast"] * 5  # once for free, once to calibrate, then a round each
    assert taken == {"slow": [3.0] * 3, "fast": [0.5] * 3}


def test_race_repeats_quick_calls_to_fill_the_time(monkeypatch):
    clock = Clock(monkeypatch)
    taken = benchmarking.race({"quick": clock.call("quick", 0.25)}, rounds=2, seconds=2.0)
    assert len(clock.order) == 2 + 2 * 8
    assert taken == {"quick": [0.25, 0.25]}


def test_ratio_pairs_rounds():
    assert benchmarking.ratio([1.0, 10.0, 3.0], [0.5, 5.0, 1.0]) == 2.0


def test_saved_bytes_counts_each_storage_once_and_no_weights():
    u = torch.randn(2, 8, requires_grad=True)
    assert benchmarking.saved_bytes(lambda: u.exp(), [u]) == 2 * 8 * 4  # exp keeps its result
    assert benchmarking.saved_bytes(lambda: (lambda y: y * y.view(16).view(2, 8))(u.exp()), [u]) == 2 * 8 * 4
    layer = nn.Linear(8, 3)
    assert benchmarking.activation_bytes(Contender("", layer, u)) == 0  # it keeps its input and its weight alone


def test_contender_trains_and_honours_reference():
    class Probe(nn.Linear):
        def forward(self, u):
            seen.append((torch.is_grad_enabled(), dispatch.choose(Coupling.diagonal, u)))
            return super().forward(u), "state"

    seen = []
    u = benchmarking.inputs(2, 3, 4)
    contender = Contender("probe", Probe(4, 5), u, kernels="reference")
    contender.forward()
    contender.train()
    first = contender.layer.weight.grad.clone()
    contender.train()
    assert seen == [(False, "reference"), (True, "reference"), (True, "reference")]
    assert torch.equal(contender.layer.weight.grad, first)  # gradients do not pile up from call to call
    assert u.grad is not None
    assert contender.tokens == 6


def test_min_gru_is_its_recurrence():
    layer, u = benchmarking.MinGRU(3, 4), torch.randn(2, 9, 3)
    x, expected = torch.zeros(2, 4), []
    for t in range(9):
        gate, candidate = layer.input(u[:, t]).chunk(2, -1)
        x = (1 - gate.sigmoid()) * x + gate.sigmoid() * candidate
        expected.append(x)
    torch.testing.assert_close(layer(u), torch.stack(expected, 1))


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with benchmarking.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_table_aligns_numbers():
    text = benchmarking.table([{"name": "a", "x": 12345.6}, {"name": "long", "x": 0.00123}], ("name", "x"))
    assert text.splitlines() == ["name        x", "a      12,346", "long  0.00123"]


def test_compare_layers_covers_couplings_and_peers():
    speeds = benchmarking.compare_layers(2, 3, 8, 2, rounds=1, seconds=0.0, thread_count=1)
    names = {speed.name for speed in speeds}
    assert {"nn.LSTM", "nn.GRU", "minGRU", "ncps CfC", "ncps LTC, 2 steps", "cfc", "synaptic, 2 steps"} <= names
    assert {"diagonal, 1 step", "diagonal, 2 steps", "full, 2 steps", "synaptic, AutoNCP, 2 steps"} <= names
    lstm = next(speed for speed in speeds if speed.name == "nn.LSTM")
    assert lstm.parameters == 4 * 8 * (8 + 8 + 2)
    assert all(row["train_tokens_per_second"] > 0 for row in benchmarking.speed_rows(speeds))


@pytest.mark.slow
def test_the_speed_benchmark_runs_and_ends_with_json(tmp_path):
    picture = tmp_path / "cost.png"
    command = [sys.executable, str(SPEED), "--quick", "--threads", "1", "--plot", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    bars = {bar["name"]: bar for bar in result["bars"]}
    for words in EXPECTED_BARS:
        assert any(words in name for name in bars), words
    for name, bar in bars.items():
        if "float32" in name or "against ncps" in name:
            assert bar["met"] or "ncps" in name, bar
            assert bar["detail"].get("largest_difference_of_outputs", 0) < 1e-5
    assert {row["axis"] for row in result["sweeps"]} == {"batch", "tokens", "width", "steps", "solver", "threads"}
    assert any("Newton" in row["name"] for row in result["layers"])
    assert result["machine"]["cores"] >= 1
    assert picture.read_bytes().startswith(b"\x89PNG")
