"""`--preset auto`: a preset where one fits, smaller for less text or time; what does not fit is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from outcomes import STORY

from ltc_textgen.config import ModelConfig, RunConfig
from ltc_textgen.data.batches import Batches
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.presets.auto import (
    ANCHORS,
    REFERENCE_SPEED,
    Job,
    fitting_vocab_size,
    measured_speed,
    misfits,
    parameters,
    size,
)
from ltc_textgen.presets.recipes import load_preset

VOCABULARIES = {"char-fast": 66, "char-best": 66, "embedded": 4096, "wikitext-2": 30_522}


@pytest.mark.parametrize("preset", VOCABULARIES)
def test_near_a_preset_it_is_the_preset(preset: str) -> None:
    anchor = next(a for anchors in ANCHORS.values() for a in anchors if a.preset == preset)
    expected = load_preset(preset)
    seconds = expected["train"]["time_budget"]
    recipe, lines = size(Job(anchor.tokens, VOCABULARIES[preset], seconds=seconds))
    assert recipe["model"] == {"dropout": 0.0} | expected["model"]
    assert recipe["train"] == expected["train"]
    assert 2 <= len(lines) <= 4
    assert f"from {preset}" in lines[0]


def test_the_same_job_gives_the_same_recipe() -> None:
    job = Job(123_456, 77, speed=3.3e10, seconds=33.0)
    assert size(job) == size(job)


@pytest.mark.parametrize("vocabulary", [66, 4096, 30_522])
def test_more_time_or_a_faster_machine_makes_it_wider_and_slower_to_learn(vocabulary: int) -> None:
    def made(seconds: float, speed: float = REFERENCE_SPEED) -> dict:
        return size(Job(3_000_000, vocabulary, speed=speed, seconds=seconds))[0]

    widths = [made(seconds)["model"]["hidden_size"] for seconds in (10, 80, 300, 900, 4000)]
    assert widths == sorted(widths)
    assert len(set(widths)) >= 4
    rates = [made(seconds)["train"]["learning_rate"] for seconds in (10, 80, 300, 900, 4000)]
    assert rates == sorted(rates, reverse=True)
    faster, longer = made(200, 2 * REFERENCE_SPEED), made(400)
    assert faster["model"] == longer["model"]
    assert faster["train"]["time_budget"] == 200


def test_less_text_makes_it_narrower_with_more_dropout() -> None:
    made = [size(Job(tokens, 66, seconds=300.0))[0]["model"] for tokens in (20_000, 300_000, 1_000_000, 5_000_000)]
    widths, dropouts = [m["hidden_size"] for m in made], [m["dropout"] for m in made]
    assert widths == sorted(widths)
    assert widths[0] < 0.7 * widths[-1]
    assert dropouts == sorted(dropouts, reverse=True)
    assert (dropouts[0], dropouts[-1]) == (0.4, 0.0)
    assert "20,000" in " ".join(size(Job(20_000, 66, seconds=300.0))[1])


def test_the_time_comes_from_the_text_if_nothing_is_said_and_is_left_to_steps() -> None:
    budget = load_preset("char-fast")["train"]["time_budget"]
    assert size(Job(1_000_000, 66))[0]["train"]["time_budget"] == budget
    assert size(Job(4_000_000, 66))[0]["train"]["time_budget"] == 2 * budget
    assert size(Job(20_000, 66))[0]["train"]["time_budget"] == budget / 4
    assert "time_budget" not in size(Job(1_000_000, 66, steps=500))[0]["train"]
    few, many = (size(Job(2_000_000, 66, epochs=epochs))[0]["model"]["hidden_size"] for epochs in (1, 20))
    assert few < many


@pytest.mark.parametrize("vocabulary", [66, 257, 4096, 30_522])
@pytest.mark.parametrize("tokens", [500, 20_000, 1_000_000, 100_000_000])
@pytest.mark.parametrize("seconds", [1.0, 300.0, 1e6])
def test_every_job_gives_a_valid_recipe(vocabulary: int, tokens: int, seconds: float) -> None:
    recipe, _ = size(Job(tokens, vocabulary, seconds=seconds))
    assert RunConfig.parse(recipe).model_config_for(vocabulary)


@pytest.mark.parametrize(("text", "tokens"), [(2_000_000, 4096), (20_000, 512), (300_000, 2048), (10**10, 16_384)])
def test_the_vocabulary_follows_the_text(text: int, tokens: int) -> None:
    assert fitting_vocab_size(text) == tokens


def test_parameters_are_about_those_of_the_model() -> None:
    for preset in ("char-fast", "char-best", "embedded"):
        settings = ModelConfig(input_size=VOCABULARIES[preset], **load_preset(preset)["model"])
        network = LiquidTimeConstantNetwork.from_settings(settings)
        count = sum(p.numel() for p in network.parameters())
        assert parameters(settings.model_dump(), VOCABULARIES[preset]) == pytest.approx(count, rel=0.1)


def test_the_speed_is_measured_in_little_time() -> None:
    threads = torch.get_num_threads()
    assert 1e8 < measured_speed(torch.device("cpu"), 1, seconds=0.05) < 1e14
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("preset", "tokens", "vocabulary", "message"),
    [
        ("char-fast", 10**6, 30_522, "30,522 .*--preset wikitext-2.*--preset auto"),
        ("char-best", 10**6, 4096, "--preset embedded"),
        ("wikitext-2", 10**6, 66, "wikitext-2.*--preset char-fast or"),
        ("wikitext-2", 5000, 30_522, "5,000.*--preset auto"),
    ],
)
def test_a_preset_that_does_not_fit_is_named(preset: str, tokens: int, vocabulary: int, message: str) -> None:
    (line, *_) = misfits(preset, load_preset(preset)["model"], tokens, vocabulary)
    import re

    assert re.search(message, line)


@pytest.mark.parametrize("preset", VOCABULARIES)
def test_a_preset_fits_its_own_text(preset: str) -> None:
    anchor = next(a for anchors in ANCHORS.values() for a in anchors if a.preset == preset)
    assert misfits(preset, load_preset(preset)["model"], anchor.tokens, VOCABULARIES[preset]) == []


def test_auto_trains_on_a_short_text_and_says_what_it_chose(tmp_path: Path, ltc) -> None:
    (tmp_path / "text.txt").write_text(STORY[:3000])
    options = ("--data", tmp_path / "text.txt", "--preset", "auto", "--max-steps", 2, "--set", "sample_tokens=0")
    result = ltc("train", *options, "--set", "num_layers=1", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    reported = [line for line in result.err.splitlines() if line.startswith("auto:")]
    assert len(reported) == 4
    assert "num_layers = 1" in reported[-1]
    import json

    run = json.loads((tmp_path / "run" / "training.json").read_text())["run"]
    assert (run["model"]["num_layers"], run["model"]["coupling"]) == (1, "diagonal")
    assert f"width {run['model']['hidden_size']}," in reported[1]
    Batches(np.arange(2700), run["train"]["batch_size"], run["train"]["sequence_length"])


def test_a_preset_that_does_not_fit_its_text_is_reported_or_rejected(tmp_path: Path, ltc) -> None:
    (tmp_path / "text.txt").write_text(STORY[:4000])
    options = ("--data", tmp_path / "text.txt", "--max-steps", 1, "--set", "sample_tokens=0", "--out")
    reported = ltc("train", *options, tmp_path / "a", "--preset", "char-fast")
    assert reported.code == 0, reported.err
    assert "preset char-fast" in reported.err
    (tmp_path / "text.txt").write_text(STORY[:1000])
    rejected = ltc("train", *options, tmp_path / "b", "--preset", "char-best")
    assert rejected.code == 2
    for fact in ("char-best", " 16 ", " 901 ", "--preset auto", "sequence_length="):
        assert fact in rejected.error
    quiet = ltc("train", *options, tmp_path / "c", "--preset", "auto")
    assert "preset char" not in quiet.err
    assert " parameters " not in quiet.err
