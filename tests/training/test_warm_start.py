"""Runs that begin from another one: the same tokenizer, and a new vocabulary with shared tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from outcomes import STORY, Outcome

from ltc_textgen.data.train_tokenizer import character_tokenizer
from ltc_textgen.errors import UsageError
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.runs import load_run
from ltc_textgen.training.warm_start import copy_weights

OTHER = "Of vows, quizzing and jackdaws: the sea was wild. " * 60


def test_the_same_vocabulary_gives_the_same_network(trained_story: Path) -> None:
    source = load_run(trained_story)
    network = LiquidNetwork(source.network.settings)
    assert copy_weights(network, source.tokenizer, trained_story) == source.tokenizer.vocab_size
    for name, weight in source.network.state_dict().items():
        assert (network.state_dict()[name] == weight).all(), name


def test_shared_tokens_keep_their_rows_and_new_ones_are_new(trained_story: Path) -> None:
    source, tokenizer = load_run(trained_story), character_tokenizer(OTHER + STORY[:40])
    settings = source.network.settings.model_copy(update={"input_size": tokenizer.vocab_size})
    torch.manual_seed(1)
    network = LiquidNetwork(settings)
    before = network.embed_tokens.weight.detach().clone()
    shared = copy_weights(network, tokenizer, trained_story)
    theirs = {source.tokenizer.token(i): i for i in range(source.tokenizer.vocab_size)}
    new = [i for i in range(tokenizer.vocab_size) if tokenizer.token(i) not in theirs]
    assert shared == tokenizer.vocab_size - len(new)
    assert 0 < len(new) < tokenizer.vocab_size
    for i in range(tokenizer.vocab_size):
        expected = before[i] if i in new else source.network.embed_tokens.weight[theirs[tokenizer.token(i)]]
        assert (network.embed_tokens.weight[i] == expected).all()


def test_another_network_is_rejected(trained_story: Path) -> None:
    source = load_run(trained_story)
    network = LiquidNetwork(source.network.settings.model_copy(update={"hidden_size": 24}))
    with pytest.raises(UsageError, match="model settings"):
        copy_weights(network, source.tokenizer, trained_story)


def test_the_command_begins_where_the_other_run_ended(
    trained_story: Path, story: Path, ltc: Callable[..., Outcome], tmp_path: Path
) -> None:
    options = ("--data", story, "--max-steps", 3, "--set", "batch_size=4", "--set", "sequence_length=16", "--json")
    ended = [
        json.loads(ltc("train", *options, "--out", tmp_path / name, *more).out)["val_loss"]
        for name, more in (
            ("cold", ("--set", "hidden_size=16", "--set", "num_layers=1")),
            ("warm", ("--init", trained_story)),
        )
    ]
    known = load_run(trained_story).facts["result"]["val_loss"]
    assert ended[1] < ended[0] - 0.5
    assert ended[1] == pytest.approx(known, abs=0.3)


@pytest.mark.parametrize("options", [("--set", "hidden_size=24"), ("--resume",)])
def test_what_contradicts_it_is_rejected(
    options: tuple[str, ...], trained_story: Path, story: Path, ltc: Callable[..., Outcome], tmp_path: Path
) -> None:
    ended = ltc("train", "--data", story, "--max-steps", 1, "--init", trained_story, "--out", tmp_path / "r", *options)
    assert ended.code == 2
    assert len(ended.error) < 300


def test_no_run_is_rejected(story: Path, ltc: Callable[..., Outcome], tmp_path: Path) -> None:
    assert ltc("train", "--data", story, "--init", tmp_path, "--out", tmp_path / "r").code == 4


def test_resuming_does_not_need_the_other_run(
    trained_story: Path, story: Path, ltc: Callable[..., Outcome], tmp_path: Path
) -> None:
    other, out = shutil.copytree(trained_story, tmp_path / "other"), tmp_path / "run"
    options = ("--set", "batch_size=4", "--set", "sequence_length=16", "--no-memory")
    assert ltc("train", "--data", story, "--init", other, "--max-steps", 2, "--out", out, *options).code == 0
    shutil.rmtree(other)
    resumed = ltc("train", "--resume", "--max-steps", 3, "--out", out)
    assert resumed.code == 0, resumed.err
