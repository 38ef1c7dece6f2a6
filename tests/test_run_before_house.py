"""A run directory, state and export made before the settings and tensors got their names of today still work.

Made by version 10a42d7 from tests/fixtures/run_before_house/story.txt:

    ltc train --data story.txt --tokenizer char --max-steps 6 --seed 3 --threads 1 --out run (a tiny liquid network)
    ltc generate run --prompt "the sea" --max-tokens 24 --temperature 0 --json > generated.json
    ltc generate run --prompt "the sea" --max-tokens 4 --temperature 0 --save-state run.state
    ltc eval run --json > eval.json
    ltc export run --out export
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltc_textgen import (
    DataConfig,
    LiquidTimeConstantNetwork,
    ModelConfig,
    SamplingConfig,
    TextState,
    TrainConfig,
    generate,
    load_run,
)
from ltc_textgen.settings import RENAMED

HERE = Path(__file__).parent / "fixtures" / "run_before_house"


def expected(name: str) -> dict:
    return json.loads((HERE / f"{name}.json").read_text())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(HERE, tmp_path / "old")
    return tmp_path / "old"


def test_it_writes_the_same_text(old: Path) -> None:
    run = load_run(old / "run")
    (sample,) = generate(run.model, run.tokenizer, "the sea", SamplingConfig(max_tokens=24, temperature=0))
    assert sample.text == expected("generated")["samples"][0]["text"]
    assert run.model.settings.learned_initial_state
    assert run.config is not None
    assert run.config.train.max_grad_norm == 0.5
    assert run.config.train.gradient_accumulation_steps == 2


def test_transformers_loads_it_and_saves_the_names_of_today(old: Path, tmp_path: Path) -> None:
    model = LiquidTimeConstantNetwork.from_pretrained(old / "run")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, load_run(old / "run").model(ids).logits)
    model.save_pretrained(tmp_path / "new")
    again = LiquidTimeConstantNetwork.from_pretrained(tmp_path / "new")
    assert torch.equal(model(ids).logits, again(ids).logits)
    from safetensors import safe_open

    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        assert "embed_tokens.weight" in file.keys()  # noqa: SIM118


def test_its_state_continues(old: Path) -> None:
    run = load_run(old / "run")
    state = TextState.load(old / "run.state", run.model)
    torch.testing.assert_close(state.liquid.neurons[0], run.model.read("the sea").liquid.neurons[0])


def test_its_score_is_the_same(old: Path, ltc: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old)
    outcome = ltc("eval", old / "run", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["nll_per_token"] == pytest.approx(expected("eval")["nll_per_token"], rel=1e-6)


def test_its_training_resumes(old: Path, ltc: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old)
    outcome = ltc("train", "--resume", "--out", "run", "--max-steps", "9", "--threads", "1", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["step"] == 9


def test_its_exported_program_runs(old: Path) -> None:
    command = [sys.executable, "generate.py", "the sea", "-n", "24", "--temperature", "0"]
    done = subprocess.run(command, cwd=old / "export", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert expected("generated")["samples"][0]["text"].strip() in done.stdout


@pytest.mark.parametrize("name", ["accumulate", "clip", "eval_every", "keep_last", "precision", "restart", "track"])
def test_a_person_is_given_the_new_name(name: str, ltc: Callable, tmp_path: Path) -> None:
    outcome = ltc("train", "--set", f"{name}=1", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert name in outcome.err
    assert RENAMED[name] in outcome.err


def test_every_renamed_setting_exists() -> None:
    fields = {name for kind in (DataConfig, ModelConfig, SamplingConfig, TrainConfig) for name in kind.model_fields}
    assert set(RENAMED.values()) <= fields
    assert not RENAMED.keys() & fields
