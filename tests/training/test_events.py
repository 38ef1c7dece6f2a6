"""What programs read of a run: JSON events on stderr, and the files of a tracker."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from outcomes import TINY, Outcome
from training_runs import Listener, settings

from ltc_textgen.errors import LTCError
from ltc_textgen.training import metrics
from ltc_textgen.training.loop import train


@pytest.mark.slow
def test_events_and_tensorboard_report_a_whole_run(
    story: Path, tmp_path: Path, ltc: Callable[..., Outcome], fresh_cache: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text('[train]\nreport_to = ["tensorboard"]\n')
    done = ltc("train", "--data", story, "--config", recipe, "--max-steps", 20, "--out", out, "--json", *TINY)
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.err.splitlines()]
    kinds = [event["event"] for event in events]
    assert set(kinds) == {"note", "start", "step", "validating", "validation", "checkpoint", "end"}
    assert kinds.count("start") == kinds.count("end") == 1
    assert kinds.index("start") < kinds.index("step") < kinds.index("end")
    (start,) = (event for event in events if event["event"] == "start")
    assert (start["step"], start["total_steps"], start["out"]) == (0, 20, str(out))
    assert start["train_tokens"] > 0
    checkpoints = [event["step"] for event in events if event["event"] == "checkpoint"]
    assert checkpoints[-1] == 20
    (end,) = (event for event in events if event["event"] == "end")
    result = json.loads(done.out)
    assert {key: value for key, value in end.items() if key != "event"}.items() <= result.items()
    assert end["step"] == 20

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # The settings have a file of their own, in a folder below.
    reported = EventAccumulator(str(out / "tracking" / "run"))
    reported.Reload()
    for key in ("loss", "val_loss", "learning_rate"):
        expected = [(line["step"], pytest.approx(line[key])) for line in lines if line.get(key) is not None]
        assert [(scalar.step, scalar.value) for scalar in reported.Scalars(key)] == expected


def test_a_missing_tracker_is_reported_before_anything_is_done(
    tmp_path: Path, story: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[train]\nreport_to = ["wandb"]\n')
    rejected = ltc("train", "--data", tmp_path / "missing.txt", "--config", recipe, "--out", tmp_path / "run")
    assert rejected.code == 2
    assert "report_to" in rejected.err
    assert "wandb" in rejected.err
    assert rejected.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def failing(*_: object, **__: object) -> None:
    raise RuntimeError("no\nnetwork")


@pytest.mark.slow
def test_a_tracker_that_fails_does_not_end_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    monkeypatch.setattr(TensorBoardTracker, "log", failing)
    listener = Listener()
    run = settings(corpus, max_steps=30, eval_steps=10, report_to=("tensorboard",))
    assert train(run, tmp_path / "run", reporter=listener).step == 30
    (note,) = [note for note in listener.notes if "tensorboard" in note]
    assert "no network" in note


def test_a_tracker_that_cannot_be_started_is_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    monkeypatch.setattr(TensorBoardTracker, "store_init_configuration", failing)
    with pytest.raises(LTCError, match=r"report_to.*no network$"):
        train(settings(corpus, max_steps=3, report_to=("tensorboard",)), tmp_path / "run", reporter=Listener())
