"""The task of uneven time is what its page says, and the script runs."""

import json

import numpy as np
import pytest
import torch

import uneven_time


def test_targets_follow_from_tokens_and_pauses() -> None:
    tokens, pauses, targets = uneven_time.sequences(3, 1.0, np.random.default_rng(0))
    assert 0.2 < targets.double().mean() < 0.8
    for row in range(3):
        ends = pauses[row].double().cumsum(0)
        starts = ends - pauses[row]
        for t in (0, 7, 40):
            ages = (ends[t] - starts[: t + 1]) / uneven_time.TAU
            trace = (tokens[row, : t + 1] * torch.exp(-ages)).sum()
            assert abs(trace - uneven_time.LEVEL) < 1e-3 or (trace > uneven_time.LEVEL) == targets[row, t]


def test_every_model_runs(capsys: pytest.CaptureFixture[str]) -> None:
    uneven_time.main(["--seeds", "0", "--steps", "2", "--width", "8", "--batch", "2"])
    out = capsys.readouterr().out
    results = json.loads(out.splitlines()[-1])["results"]
    assert [row["name"] for row in results] == list(uneven_time.MODELS)
    assert all(0 < value <= 1 for row in results for value in row["accuracy"].values())
    assert out.count("\n| ") == len(uneven_time.MODELS) + 2
