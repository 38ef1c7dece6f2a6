"""The model that comes with the package: small, and known to every command as `demo`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import Outcome

from ltc_textgen.io.paths import DEMO, run_path
from ltc_textgen.runs import load_run

Ltc = Callable[..., Outcome]


def test_it_writes(ltc: Ltc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = ltc("generate", "demo", "--prompt", "ROMEO:\n", "--max-tokens", 60, "--seed", 0)
    assert done.code == 0
    assert done.out.startswith("ROMEO:\n")
    assert 60 < len(done.out) < 80


def test_it_is_measured_and_shown(ltc: Ltc, story: Path) -> None:
    scores = json.loads(ltc("eval", "demo", "--data", story, "--json").out)
    assert 1 < scores["nll_per_token"] < 3
    shown = json.loads(ltc("inspect", "demo", "--json").out)
    assert shown["facts"]["result"]["val_loss"] < 1.5
    assert len(shown["time_constants"]) == 4
    assert shown["curve"]


def test_its_own_corpus_must_be_given(ltc: Ltc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = ltc("eval", "demo")
    assert done.code == 3
    assert done.err.count("\n") == 1


def test_it_is_a_model_of_transformers_too() -> None:
    run = load_run("demo")
    assert run.path == DEMO
    assert run.model.generation_config.eos_token_id == run.tokenizer.eos_token_id


def test_a_directory_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_path("demo") == DEMO
    (tmp_path / "demo").mkdir()
    assert run_path("demo") == Path("demo")
    assert run_path("runs/demo") == Path("runs/demo")


def test_it_is_small_and_names_its_origin() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 3_000_000
    assert json.loads((DEMO / "training.json").read_text())["facts"]["corpus"] == "tinyshakespeare.txt"
    assert "86c4e6aa" in (DEMO / "README.md").read_text()


@pytest.mark.slow
def test_writing_with_it_imports_no_transformers() -> None:
    code = (
        "import sys; from ltc_textgen.cli import main;"
        "main.run(['generate', 'demo', '--prompt', 'A', '--max-tokens', '3']); assert 'transformers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
