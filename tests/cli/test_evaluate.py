"""`ltc eval`: what is measured besides the loss, and which options go together."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import STORY, Outcome


def test_what_is_asked_for_stands_beside_the_plain_loss(run: Path, ltc: Callable[..., Outcome]) -> None:
    plain = json.loads(ltc("eval", run, "--json").out)
    options = ("--dynamic", "--dynamic-lr", 1e-3, "--dynamic-segment", 64, "--cache", 200, "--cache-lambda", 0.3)
    result = ltc("eval", run, "--json", *options)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert {name: found[name] for name in plain} == plain
    assert set(found) - set(plain) == {"cache", "dynamic", "dynamic_and_cache"}
    assert found["cache"]["settings"] == {"size": 200, "theta": 20.0, "weight": 0.3}
    assert found["dynamic"]["settings"] == {"learning_rate": 1e-3, "decay": 1e-3, "segment": 64}
    losses = {name: found[name]["nll_per_token"] for name in ("cache", "dynamic", "dynamic_and_cache")}
    assert len({plain["nll_per_token"], *losses.values()}) == 4
    shown = ltc("eval", run, "--cache", 200, "--cache-lambda", 0.3).out
    assert f"with cache                {losses['cache']:.4f} nats per token" in shown
    assert f"nats per token    {plain['nll_per_token']:.4f}" in shown


def test_random_crops_stand_beside_the_loss_in_windows(run: Path, ltc: Callable[..., Outcome]) -> None:
    found = json.loads(ltc("eval", run, "--window", 16, "--random-crops", 20, "--seed", 3, "--json").out)
    crops = found["random_crops"]
    assert (crops["crops"], crops["window"], crops["seed"], found["window"]) == (20, 16, 3, 16)
    assert abs(crops["nll_per_token"] - found["nll_per_token"]) < 5 * crops["standard_error"]
    assert (
        f"{crops['nll_per_token']:.4f} +- " in ltc("eval", run, "--window", 16, "--random-crops", 20, "--seed", 3).out
    )


def test_a_sample_is_measured_beside_the_corpus(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    text = tmp_path / "loop.txt"
    text.write_text(STORY[:40] * 100)
    options = ("--data", text, "--sample", 200, "--temperature", 0.5, "--seed", 1)
    sample = json.loads(ltc("eval", run, *options, "--json").out)["sample"]
    assert sample["characters"] == len(sample["text"]) == 200
    assert (sample["temperature"], sample["seed"]) == (0.5, 1)
    assert sample["corpus"]["looping"] == 1.0
    assert sample["measures"]["looping"] < 1.0
    again = ltc("eval", run, *options)
    assert again.code == 0, again.err
    assert "200 characters" in again.out
    (line,) = [line.split() for line in again.out.splitlines() if line.startswith("looping")]
    assert line == ["looping", f"{sample['measures']['looping']:.4g}", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dynamic-lr", 0.1), "--dynamic-lr"),
        (("--cache-lambda", 0.1), "--cache-lambda"),
        (("--cache", 10, "--cache-lambda", 1), "--cache: weight"),
        (("--dynamic", "--window", 8), "leave out --window"),
        (("--random-crops", 3), "--random-crops needs --window"),
        (("--temperature", 0.5), "--temperature"),
    ],
)
def test_options_that_do_nothing_are_rejected(
    options: tuple, message: str, run: Path, ltc: Callable[..., Outcome]
) -> None:
    result = ltc("eval", run, *options)
    assert result.code == 2
    assert message in result.error
