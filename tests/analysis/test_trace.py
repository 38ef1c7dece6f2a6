"""A trace is what the network computes, for any split, and survives a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_networks import Letters, network
from torch.testing import assert_close

from ltc_textgen.analysis import Trace, trace
from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.evaluation import score_tokens
from ltc_textgen.model.network import LiquidNetwork

CLOSE = {"rtol": 2e-5, "atol": 1e-5}


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_time_constants_and_states_are_the_networks_for_any_split(
    every: LiquidNetwork, ids: torch.Tensor, chunk: int
) -> None:
    seen, expected = trace(every, ids, chunk=chunk), every.time_constants(ids)
    for ours, theirs in zip(seen.tau, expected, strict=True):
        assert_close(1 / torch.from_numpy(ours), 1 / theirs[0].detach(), **CLOSE)
    _, after = every.advance(ids)
    for states, neurons in zip(seen.states, after.neurons, strict=True):
        assert_close(torch.from_numpy(states[-1]), neurons[0].detach(), **CLOSE)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_surprise_adds_up_to_the_loss(every: LiquidNetwork, ids: torch.Tensor, chunk: int) -> None:
    seen = trace(every, ids, chunk=chunk)
    assert np.isnan(seen.surprise[0])
    total, scored = score_tokens(every, ids[0].numpy())
    assert seen.loss == pytest.approx(total / scored, rel=1e-5)


def test_a_text_continues_another(every: LiquidNetwork, ids: torch.Tensor) -> None:
    whole, rest = trace(every, ids), trace(every, ids[:, 10:], state=every.read(ids[:, :10]))
    np.testing.assert_allclose(rest.surprise, whole.surprise[10:], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(rest.states, whole.states, strict=True):
        np.testing.assert_allclose(ours, theirs[10:], rtol=1e-4, atol=1e-5)


def test_uneven_time_reaches_the_neurons(ids: torch.Tensor) -> None:
    model, time = network(), torch.linspace(0, 3, 30)
    seen, expected = trace(model, ids, elapsed=time), model.time_constants(ids, elapsed=time[None])
    assert_close(torch.from_numpy(seen.tau[1]), expected[1][0].detach(), **CLOSE)
    assert not np.allclose(seen.states[0], trace(model, ids).states[0])


@pytest.mark.parametrize("while_reading", [True, False])
def test_a_file_holds_the_trace_to_the_bit(tmp_path: Path, while_reading: bool) -> None:
    model, path = network(), tmp_path / "a.trace"
    text = "abc j ihg" * 5
    seen = trace(model, text, Letters())
    if while_reading:
        mapped = trace(model, text, Letters(), path=path)
    else:
        seen.save(path)
        mapped = Trace.load(path)
    assert mapped.pieces == list(text)
    assert mapped.model == model.fingerprint()
    assert isinstance(mapped.states[0], np.memmap)
    for name in ("ids", "surprise", "elapsed"):
        np.testing.assert_array_equal(getattr(mapped, name), getattr(seen, name))
    for ours, theirs in zip(mapped.tau + mapped.states, seen.tau + seen.states, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [file.name for file in tmp_path.iterdir()] == ["a.trace"]


def test_damaged_files_are_rejected(tmp_path: Path, ids: torch.Tensor) -> None:
    path = tmp_path / "a.trace"
    trace(network(), ids, path=path)
    content = path.read_bytes()
    for damaged in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        b"\xff" * 100,
        content.replace(b"trace", b"state"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"a\.trace"):
            Trace.load(path)
    with pytest.raises(ArtifactError):
        Trace.load(tmp_path / "missing")


def test_wrong_use_is_one_line(ids: torch.Tensor) -> None:
    model = network()
    seen = trace(model, ids)
    for call in (
        lambda: trace(model, ids.expand(2, -1)),
        lambda: trace(model, "abc"),
        lambda: seen.series("L2N0"),
        lambda: seen.series("L0N99"),
        lambda: seen.series("first"),
        lambda: seen.series("L0N0", "voltage"),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert "\n" not in str(error.value)
