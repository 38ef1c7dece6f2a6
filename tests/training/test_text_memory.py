"""The n-gram memory of a run: made by training, used by every command, left out on request."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from outcomes import TINY, Outcome
from safetensors.numpy import load_file

from ltc_textgen.config import DataConfig, TrainConfig
from ltc_textgen.data.token_cache import prepare
from ltc_textgen.kernels.library import LIBRARY
from ltc_textgen.memory import Mixture, load_memory
from ltc_textgen.memory.files import MEMORY
from ltc_textgen.runs import load_run
from ltc_textgen.training.text_memory import hold_back

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no compiled kernels here")


@pytest.fixture(scope="module")
def remembering(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ltc_textgen.cli import main

    out = tmp_path_factory.mktemp("runs") / "story"
    options = ["--max-steps", "30", "--memory", "--tokenizer", "char", "--set", "memory.order=4"]
    assert main.run(["train", "--data", str(story), *options, "--out", str(out), *TINY]) == 0
    return out


def test_what_is_held_back_is_the_beginning_of_the_training_text(story: Path, fresh_cache: Path) -> None:
    data = prepare(DataConfig(data=str(story), tokenizer="char"))
    kept, held_back = hold_back(data, TrainConfig(batch_size=2, sequence_length=8))
    assert len(held_back) == len(data.train) // 20
    assert (np.concatenate([held_back, kept.train]) == data.train).all()
    _, nothing = hold_back(data, TrainConfig(batch_size=len(data.train), sequence_length=8))
    assert len(nothing) == 0


def test_it_counts_all_of_the_training_text(remembering: Path, story: Path) -> None:
    run = load_run(remembering)
    mixture, header = load_memory(run.path, run.tokenizer.fingerprint, run.tokenizer.vocab_size)
    assert int(header["tokens"]) == len(prepare(DataConfig(data=str(story), tokenizer="char")).train)
    assert int(header["tokens"]) - int(header["tokens"]) // 20 == run.facts["train_tokens"]
    assert mixture.memory.order == 4
    assert mixture.steps.sum() > 0


def test_both_together_are_better_than_each(remembering: Path, ltc: Callable[..., Outcome]) -> None:
    reported = json.loads(ltc("eval", remembering, "--adapt", "--json").out)
    found = json.loads(ltc("inspect", remembering, "--json").out)["memory"]
    assert reported["memory"]["nll_per_token"] < reported["nll_per_token"]
    assert reported["memory_adapting"]["nll_per_token"] < reported["nll_per_token"]
    assert found["mixed_loss"] == pytest.approx(reported["memory"]["nll_per_token"], rel=1e-4)
    assert found["memory_loss"] == pytest.approx(reported["memory"]["counts_alone"], rel=1e-4)
    bits = reported["memory"]["nll_per_token"] * reported["tokens"] / (math.log(2) * reported["bytes"])
    assert reported["memory"]["bits_per_byte"] == pytest.approx(bits)


def test_no_memory_asked_for_is_the_network_alone(
    remembering: Path, ltc: Callable[..., Outcome], tmp_path: Path
) -> None:
    bare = shutil.copytree(remembering, tmp_path / "bare")
    (bare / MEMORY).unlink()
    options = ("--seed", 3, "-n", 40, "--prompt", "On day")
    alone = ltc("generate", bare, *options).out
    assert ltc("generate", remembering, *options, "--memory", 0).out == alone
    assert ltc("generate", remembering, *options).out != alone
    reported = json.loads(ltc("eval", remembering, "--no-memory", "--json").out)
    assert "memory" not in reported
    assert json.loads(ltc("inspect", bare, "--json").out)["memory"] is None


def test_a_sample_does_not_depend_on_its_batch(remembering: Path, ltc: Callable[..., Outcome]) -> None:
    def texts(*options: object) -> list[str]:
        reported = ltc("generate", remembering, "--seed", 5, "-n", 30, "--json", "--engine", "torch", *options)
        return [sample["text"] for sample in json.loads(reported.out)["samples"]]

    assert texts("--num-samples", 3)[:1] == texts()


def test_what_it_learns_from_a_prompt_it_writes_again(remembering: Path, ltc: Callable[..., Outcome]) -> None:
    prompt = "seadog howed. " * 12 + "seadog ho"
    adapted = ltc("generate", remembering, "--prompt", prompt, "--temperature", 0, "-n", 3, "--adapt")
    assert adapted.code == 0, adapted.err
    assert adapted.out == prompt + "wed\n"


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_a_damaged_memory_ends_in_a_line(
    command: str, remembering: Path, ltc: Callable[..., Outcome], tmp_path: Path
) -> None:
    broken = shutil.copytree(remembering, tmp_path / "broken")
    content = bytearray((broken / MEMORY).read_bytes())
    (broken / MEMORY).write_bytes(content[: len(content) // 2])
    ended = ltc(command, broken)
    assert ended.code == 4
    assert MEMORY in ended.error
    assert len(ended.err.strip().splitlines()) == 1


def test_the_memory_of_another_tokenizer_is_rejected(
    remembering: Path, ltc: Callable[..., Outcome], tmp_path: Path
) -> None:
    other = shutil.copytree(remembering, tmp_path / "other")
    mixture, header = Mixture.load(other / MEMORY)
    mixture.save(other / MEMORY, header | {"tokenizer": "0" * 64})
    assert ltc("generate", other).code == 4


@pytest.mark.parametrize("options", [("--memory", 0.5), ("--adapt", "-p", "On day")])
def test_options_of_a_memory_need_one(
    options: tuple[object, ...], remembering: Path, ltc: Callable[..., Outcome], tmp_path: Path
) -> None:
    bare = shutil.copytree(remembering, tmp_path / "bare")
    (bare / MEMORY).unlink()
    assert ltc("generate", bare, *options).code == 2


def test_a_run_that_was_killed_before_its_memory_makes_it_when_resumed(
    remembering: Path, ltc: Callable[..., Outcome], tmp_path: Path
) -> None:
    killed = shutil.copytree(remembering, tmp_path / "killed")
    whole = load_file(killed / MEMORY)
    (killed / MEMORY).unlink()
    assert ltc("train", "--resume", "--out", killed).code == 0
    again = load_file(killed / MEMORY)
    assert again.keys() == whole.keys()
    assert all((again[name] == whole[name]).all() for name in whole)


@pytest.mark.slow
def test_what_is_copied_is_measured_beside_the_held_out_text(remembering: Path, ltc: Callable[..., Outcome]) -> None:
    reported = json.loads(ltc("eval", remembering, "--sample", 300, "--temperature", 0.5, "--json").out)
    copied = reported["sample"]["copied"]
    assert set(copied) == {"sample", "network_alone", "held_out"}
    assert copied["held_out"]["longest"] > 50  # every line of the story has the same words
    assert copied["sample"]["longest"] > copied["network_alone"]["longest"]
    assert 0 <= copied["network_alone"]["fraction"] <= copied["sample"]["fraction"] <= 1


@pytest.mark.parametrize("options", [("--memory", 0, "-p", "On day"), (), ("-i",)])
def test_adapting_without_anything_to_learn_from_is_rejected(
    options: tuple[object, ...], remembering: Path, ltc: Callable[..., Outcome]
) -> None:
    assert ltc("generate", remembering, "--adapt", *options).code == 2
