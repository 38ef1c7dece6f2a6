"""wandb and trackio, replaced by packages that record their calls and reject what the real ones reject."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import Listener, metrics, settings

from ltc_textgen.errors import UsageError
from ltc_textgen.training import metrics as metrics_module
from ltc_textgen.training.loop import train

RECORDER = """
import json, os
from pathlib import Path

RESERVED = {"project", "run", "timestamp", "step", "time", "metrics"}  # of trackio; none of ours for wandb either


def _write(*call):
    with Path(os.environ["REPORTED"]).open("a") as file:
        file.write(json.dumps([__name__, *call]) + "\\n")


class Config:
    def update(self, values, allow_val_change):
        _write("config", values)


class Run:
    def log(self, values, step):
        assert not RESERVED & values.keys()
        assert all(isinstance(value, (int, float)) for value in values.values())
        _write("log", step, values)

    def finish(self):
        _write("finish")


config = Config()


def init(project):
    if "REJECTING" in os.environ:
        raise RuntimeError("nobody is\\nlogged in")
    _write("init", project)
    return Run()
"""


def install(site: Path, name: str) -> None:
    """A package with the metadata by which `accelerate` finds it."""
    (site / name).mkdir(parents=True)
    (site / name / "__init__.py").write_text(RECORDER)
    about = site / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def ltc_train(corpus: Path, place: Path, tracks: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A training by the command, in a process that finds these packages."""
    for name in tracks.split(","):
        install(place / "site", name)
    values = {"hidden_size": 16, "num_layers": 1, "batch_size": 4, "sequence_length": 16, "eval_steps": 10}
    given = [f"--set={key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "ltc_textgen", "train", "--data", str(corpus), "--tokenizer", "char", *given]
    command += ["--set", f"report_to={tracks}", "--max-steps", "20", "--device", "cpu", "--out", str(place / "a run")]
    more = {"PYTHONPATH": str(place / "site"), "REPORTED": str(place / "reported"), **environment}
    return subprocess.run(command, env=os.environ | more, capture_output=True, text=True, timeout=120, cwd=place)


@pytest.mark.slow
def test_wandb_and_trackio_log_the_settings_the_curve_and_the_end(corpus, tmp_path):
    done = ltc_train(corpus, tmp_path, "wandb,trackio")
    assert done.returncode == 0, done.stderr
    reported = [json.loads(line) for line in (tmp_path / "reported").read_text().splitlines()]
    lines = metrics(tmp_path / "a run")
    assert [line["step"] for line in lines] == [10, 10, 20, 20]
    for name in ("wandb", "trackio"):
        calls = [call[1:] for call in reported if call[0] == name]
        assert calls[0] == ["init", "a run"]
        assert calls[1][0] == "config"
        assert calls[-1] == ["finish"]
        values = calls[1][1]
        assert (values["train.batch_size"], values["model.hidden_size"], values["data.tokenizer"]) == (4, 16, "char")
        assert values["model.input_size"] > 10
        assert [call[0] for call in calls[2:-1]] == ["log"] * len(lines)
        for (_, step, numbers), line in zip(calls[2:-1], lines, strict=True):
            assert step == line["step"]
            assert numbers == {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        first, second = calls[2][2], calls[3][2]
        assert first.keys() == {"loss", "learning_rate", "tokens_per_second", "seconds", "skipped"}
        assert {"val_loss", "train_loss", "gap", "best"} <= second.keys()


@pytest.mark.slow
def test_one_that_cannot_be_started_ends_the_run_in_one_line(corpus, tmp_path):
    done = ltc_train(corpus, tmp_path, "wandb", REJECTING="1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ltc: train.report_to: ")
    assert "nobody is logged in" in last, "the reason of the tracker"
    assert "Traceback" not in done.stderr


def test_a_folder_that_wandb_left_is_not_the_package(corpus, tmp_path, monkeypatch):
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert metrics_module.find_spec("wandb") is not None
    with pytest.raises(UsageError, match="report_to.*wandb"):
        train(settings(corpus, max_steps=1, report_to=["wandb"]), tmp_path / "run", reporter=Listener())
