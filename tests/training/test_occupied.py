"""What is in a run directory already is not overwritten."""

import json
import shutil

import pytest
from training_runs import Listener, settings

from ltc_textgen.errors import UsageError
from ltc_textgen.training.loop import train
from ltc_textgen.training.run_lock import reject_other_run


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    train(settings(corpus, max_steps=10), out, reporter=Listener())
    return out


def content(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file() and not p.name.startswith(".")}


@pytest.mark.parametrize("lost", ["weights stay", "the curve stays"])
def test_a_run_whose_checkpoints_are_gone_is_not_started_over(finished, corpus, tmp_path, lost):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints")
    if lost == "the curve stays":
        (out / "model.safetensors").unlink()
    before = content(out)
    with pytest.raises(UsageError, match="--out"):
        train(settings(corpus, max_steps=10), out, resume=True, reporter=Listener())
    assert content(out) == before


def test_a_run_that_came_to_no_validation_may_start_over(finished, corpus, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints")
    (out / "model.safetensors").unlink()
    (out / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": 3.0}) + "\n5\n{cut")
    listener = Listener()
    assert train(settings(corpus, max_steps=3), out, resume=True, reporter=listener).step == 3
    assert all(json.loads(line)["step"] == 3 for line in (out / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "adapter.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("resume", [False, True])
def test_the_model_of_another_program_is_left_alone(corpus, tmp_path, name, resume):
    out = tmp_path / "foreign"
    out.mkdir()
    (out / name).write_text("precious")
    with pytest.raises(UsageError, match=f"{name}.*--out"):
        train(settings(corpus, max_steps=1), out, resume=resume, reporter=Listener())
    assert content(out) == {out / name: b"precious"}


@pytest.mark.parametrize("resume", [False, True])
def test_other_files_and_a_run_without_a_step_are_no_hindrance(tmp_path, resume):
    reject_other_run(tmp_path / "new", resume)
    (tmp_path / "notes.txt").write_text("mine")
    reject_other_run(tmp_path, resume)
    for name in ("config.json", "tokenizer.json", "training.json"):
        (tmp_path / name).write_text("{}")
    reject_other_run(tmp_path, resume)
