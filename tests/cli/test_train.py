"""`ltc train`: which recipe it chooses, what it keeps, what it rejects and which process reports."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub import Hub, dead_endpoint
from outcomes import STORY, TINY, Outcome

from ltc_textgen.config import DataConfig
from ltc_textgen.data import corpora, token_cache
from ltc_textgen.data.corpora import Corpus
from ltc_textgen.presets.recipes import load_preset
from ltc_textgen.training.progress import Progress

ROOT = Path(__file__).parents[2]


def settings_of(run: Path) -> dict:
    return json.loads((run / "training.json").read_text())["run"]


@pytest.mark.slow
def test_the_automatic_recipe_brings_its_vocabulary(
    tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, fresh_cache: Path
) -> None:
    """Without a hub `ltc train` is the preset embedded, vocabulary included; here over a shorter text."""
    story = [(STORY * 3, True)]
    small = Corpus("embedded", "0" * 64, {"train": lambda: iter(story), "valid": lambda: iter(story)}, "wordpiece")
    monkeypatch.setattr(corpora, "_embedded", lambda config: small)
    loaded: list[DataConfig] = []
    original = corpora.load_corpus
    for module in (corpora, token_cache):
        monkeypatch.setattr(
            module, "load_corpus", lambda config, note: (loaded.append(config), original(config, note))[1]
        )
    result = ltc("train", "--max-steps", 1, "--out", tmp_path / "run", *TINY)
    assert result.code == 0, result.err
    assert "recipe: embedded," in result.err
    assert settings_of(tmp_path / "run")["data"] == {
        **DataConfig().model_dump(mode="json"), "data": "embedded", "tokenizer": "wordpiece", "vocab_size": 4096
    }  # fmt: skip
    assert len(loaded) == 1, "the corpus is looked for once"
    ltc("train", "--max-steps", 1, "--out", tmp_path / "mine", "--set", "vocab_size=300", *TINY)
    assert settings_of(tmp_path / "mine")["data"]["vocab_size"] == 300


@pytest.mark.slow
def test_an_automatic_preset_lies_below_a_config_file(story: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[model]\nhidden_size = 24\nnum_layers = 1\n[train]\nbatch_size = 4\nsequence_length = 16\n")
    options = ("--data", story, "--config", recipe, "--max-steps", 1)
    auto = ltc("train", "--preset", "auto", *options, "--out", tmp_path / "auto")
    assert "hidden_size = 24, num_layers = 1" in auto.err
    model = settings_of(tmp_path / "auto")["model"]
    assert (model["hidden_size"], model["coupling"], model["block"]) == (24, "diagonal", "liquid")
    alone = ltc("train", *options, "--out", tmp_path / "alone")
    assert "recipe:" not in alone.err
    assert "coupling" not in settings_of(tmp_path / "alone")["model"]


def test_a_short_text_needs_no_settings(tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    text = tmp_path / "short.txt"
    text.write_text(STORY[:320])
    result = ltc("train", "--data", text, "--max-steps", 1, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    rows = load_preset("char-fast")["train"]["batch_size"]
    tokens = json.loads((tmp_path / "run" / "training.json").read_text())["facts"]["train_tokens"]
    length = (tokens - 1) // rows
    assert f"sequence_length {length}" in result.err
    assert settings_of(tmp_path / "run")["train"]["sequence_length"] == length
    wished = ltc("train", "--data", text, "--max-steps", 1, "--out", tmp_path / "2", "--preset", "char-fast")
    assert wished.code == 2
    assert "sequence_length=" in wished.error


def test_paths_are_kept_from_the_root(
    story: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(STORY)
    (tmp_path / "held.txt").write_text(STORY[:3000])
    monkeypatch.chdir(tmp_path)
    first = ltc("train", "--data", "text.txt", "--valid", "held.txt", "--max-steps", 1, "--out", "run", *TINY)
    assert first.code == 0, first.err
    data = settings_of(tmp_path / "run")["data"]
    assert (data["data"], data["valid"]) == (str(tmp_path / "text.txt"), str(tmp_path / "held.txt"))
    options = ("--tokenizer", "run", "--max-steps", 1, "--out", "second", *TINY)
    assert ltc("train", "--data", "text.txt", *options).code == 0
    assert settings_of(tmp_path / "second")["data"]["tokenizer"] == str(tmp_path / "run")
    os.chdir("/")
    again = ltc("train", "--resume", "--out", tmp_path / "run", "--max-steps", 2)
    assert again.code == 0, again.err
    assert "step 1," in again.err


def test_only_the_first_process_speaks(
    story: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    for more in ((), ("--json",)):
        result = ltc("train", "--data", story, "--max-steps", 1, "--out", tmp_path / f"run{len(more)}", *TINY, *more)
        assert (result.code, result.out, result.err) == (0, "", "")


def test_damaged_settings_of_a_run_are_code_4(story: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    out = tmp_path / "run"
    ltc("train", "--data", story, "--max-steps", 1, "--out", out, *TINY)
    whole = (out / "training.json").read_text()
    for damaged in (whole[:100], "[]", '{"run": []}'):
        (out / "training.json").write_text(damaged)
        result = ltc("train", "--resume", "--out", out)
        assert result.code == 4, result.err
        assert str(out / "training.json") in result.error
    assert ltc("inspect", out).code == 4
    assert ltc("train", "--config", out / "training.json", "--out", tmp_path / "other").code == 2


def test_resume_without_a_run_needs_a_text_and_names_the_runs_nearby(
    run: Path, story: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped --out must not train on another text than the user's."""
    monkeypatch.chdir(run.parent)
    for more in ((), ("--preset", "char-fast"), ("--resume-anyway",)):
        result = ltc("train", "--resume", "--out", run.parent / "storry", "--max-steps", 1, *more)
        assert (result.code, result.out) == (2, "")
        assert run.name in result.error
        assert "--data" in result.error
    assert not (run.parent / "storry").exists()
    fresh = ltc("train", "--resume", "--data", story, "--out", tmp_path / "new", "--max-steps", 1, *TINY)
    assert fresh.code == 0, fresh.err


def test_a_validation_that_is_not_finite_is_no_success(
    story: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltc_textgen.training import validation

    monkeypatch.setattr(validation, "score_tokens", lambda *_, **__: (float("nan"), 10))
    for number, more in enumerate(((), ("--json",))):
        result = ltc("train", "--data", story, "--out", tmp_path / str(number), "--max-steps", 1, *TINY, *more)
        assert result.code == 1
        assert "learning_rate" in result.error
        assert "ltc generate" not in result.out
        assert not (tmp_path / str(number) / "model.safetensors").exists()


def test_more_extends_a_run_beyond_its_budget(
    story: Path, run: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    used = json.loads((run / "training.json").read_text())["facts"]["result"]["seconds"]
    result = ltc("train", "--resume", "--more", "3s", "--out", out)
    assert result.code == 0, result.err
    facts = json.loads((out / "training.json").read_text())
    assert "step 150" in result.err
    assert facts["facts"]["result"]["seconds"] > used
    assert facts["run"]["train"]["time_budget"] == pytest.approx(used + 3, abs=0.1)
    assert facts["run"]["train"]["max_steps"] is None
    for wrong in (("--more", "1m"), ("--resume", "--more", "1m", "--epochs", 2), ("--resume", "--more", "-1m")):
        assert ltc("train", *wrong, "--out", out).code == 2


def test_a_loss_that_still_falls_is_said_with_what_to_do(
    story: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Progress(val_loss=2.0, gained=0.1).still_falling
    assert not Progress(val_loss=2.0, gained=0.001).still_falling
    assert not Progress(val_loss=2.0).still_falling
    for falling in (True, False):
        monkeypatch.setattr(Progress, "still_falling", property(lambda _, answer=falling: answer))
        out = tmp_path / str(falling)
        result = ltc("train", "--data", story, "--time-budget", "0.1s", "--out", out, *TINY)
        assert result.code == 0, result.err
        assert (f"--resume --more 1s --out {out}" in result.out) == falling


@pytest.mark.slow
def test_a_solver_over_a_preset_is_explained_before_the_first_step(
    story: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    for number, setting in enumerate(("solver=runge_kutta", "steps=6", "coupling=full")):
        out = tmp_path / str(number)
        result = ltc("train", "--data", story, "--max-steps", 1, "--out", out, *TINY, "--set", setting)
        assert result.code == 0, result.err
        model = settings_of(out)["model"]
        assert model["steps"] * model["step_size"] == pytest.approx(1.0)
        assert model["steps"] == (1 if number == 2 else 6)
        assert ("step_size 1 -> 0.167" in result.err) == (number < 2)


def test_a_huge_or_long_setting_gets_one_short_line(story: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    for setting in (
        "hidden_size=1" + "0" * 30,
        "hidden_size=900000",
        "max_steps=" + "9" * 5000,
        "batch_size=" + "9" * 50,
        "learning_rate=" + "x" * 100_000,
        "k" * 100_000 + "=1",
        "coupling=" + "y" * 100_000,
        "wiring.kind=" + "z" * 100_000,
        "model.x=" + "[" * 50_000,
    ):
        result = ltc("train", "--data", story, "--max-steps", 1, "--out", tmp_path / "run", "--set", setting)
        assert (result.code, len(result.error) < 1600) == (2, True), (setting[:30], result.error[:300])
        assert "internal error" not in result.error


@pytest.mark.slow
def test_train_py_reads_wikitext_from_a_hub_and_then_needs_none(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script as it stands, in processes of its own: a hub on loopback, then a warm cache and a dead hub."""

    def train(out: str) -> list[str]:
        command = [sys.executable, str(ROOT / "train.py"), "--max-steps", "2", "--out", out]
        small = ["--set", "hidden_size=16", "--set", "num_layers=1", "--set", "batch_size=2"]
        done = subprocess.run([*command, *small], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert "recipe: wikitext-2," in done.stderr
        return done.stdout.splitlines()

    first = train("first")
    facts = json.loads((tmp_path / "first" / "training.json").read_text())["facts"]
    assert facts["corpus"] == "wikitext-2"
    assert facts["tokenizer"] == "bert"
    monkeypatch.setenv("HF_ENDPOINT", dead_endpoint())
    assert train("second")[0] == first[0], "the same text, the same loss"


def test_three_letters_are_too_little(tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    (tmp_path / "abc.txt").write_text("abc")
    result = ltc("train", "--data", tmp_path / "abc.txt", "--max-steps", 1, "--out", tmp_path / "run")
    assert result.code == 3, result.err
    assert "sequence_length" in result.error


def test_a_run_that_ended_stays_as_it_is(tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    out = tmp_path / "run"
    assert ltc("train", "--data", tmp_path / "story.txt", "--max-steps", 2, "--out", out, *TINY).code == 0
    before = (out / "training.json").read_bytes()
    again = ltc("train", "--resume", "--out", out, "--seed", 3, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["step"] == 2
    assert (out / "training.json").read_bytes() == before
