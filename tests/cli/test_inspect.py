"""`ltc inspect` of a running run: before its first validation it has no weights, but settings and curves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import TINY, Outcome

from ltc_textgen.cli import curves, inspect, main
from ltc_textgen.training import loop

SHOWN = 30


@pytest.fixture(scope="module")
def seen(story: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What the command said while a training was under way, at its thirtieth step, and once it was over."""
    place = tmp_path_factory.mktemp("live")
    run, figure = place / "a run", place / "curves.svg"
    reported: dict[str, Outcome] = {}
    original = loop._report_step

    def ask(name: str, *arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            out, err = _Lines(), _Lines()
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", err)
            code = main.run(["inspect", str(run), *map(str, arguments)])
        reported[name] = Outcome(code, out.text, err.text)

    def report_step(session: loop.Session) -> None:
        original(session)
        if session.progress.step != SHOWN:
            return
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 31, "lo')  # a line that is being written
        ask("lines")
        ask("json", "--json")
        ask("plot", "--plot", figure)
        ask("tau", "--plot", place / "other.svg", "--plot-tau", place / "tau.svg")
        ask("no text", "--text", "")
        reported["figures"] = Outcome(0, " ".join(sorted(path.name for path in place.glob("*.svg"))), "")
        for name, content in (("damaged", "{"), ("empty", "{}"), ("strange", '{"run": {"x": 1}, "facts": {}}')):
            kept = (run / "training.json").read_bytes()
            (run / "training.json").write_text(content)
            ask(name)
            (run / "training.json").write_bytes(kept)
        (run / "pytorch_model.bin").write_bytes(b"")
        ask("pickled")
        (run / "pytorch_model.bin").unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr(loop, "_report_step", report_step)
        arguments = ["--data", str(story), "--max-steps", "40", "--set", "eval_steps=40", "--out", str(run), *TINY]
        assert main.run(["train", *arguments]) == 0
    ask("finished", "--json")
    (run / "model.safetensors").unlink()
    ask("lost")
    return reported


class _Lines:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def test_settings_and_curves_of_a_running_run(seen: dict[str, Outcome]) -> None:
    shown = seen["lines"]
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert "1 liquid layer of width 16" in lines[0]
    assert any(line.startswith("parameters ") for line in lines)
    assert "train.batch_size=4" in shown.out
    assert "story é.txt" in shown.out
    (said,) = (line for line in lines if "time constants" in line)
    assert said == f"time constants  none yet: {inspect.LATER}"
    (loss,) = (line for line in lines if line.startswith("training loss"))
    assert sum(character in curves.SPARKS for character in loss) == 3
    assert not any(line.startswith("validation loss") for line in lines)


def test_the_document_of_a_running_run_has_the_keys_of_a_finished_one(seen: dict[str, Outcome]) -> None:
    live, finished = json.loads(seen["json"].out), json.loads(seen["finished"].out)
    assert live.keys() == finished.keys()
    assert live["time_constants"] is None
    assert len(finished["time_constants"]) == 1
    assert live["curve"] == []
    assert [record["step"] for record in live["steps"]] == [10, 20, 30]
    assert live["facts"]["train_tokens"] > 0
    assert {**finished, **{key: live[key] for key in ("facts", "memory", "time_constants", "curve", "steps")}} == live
    assert live["settings"]["train.batch_size"] == 4
    assert live["parameters"] > 0


def test_curves_of_a_running_run_are_drawn_but_time_constants_are_not(seen: dict[str, Outcome]) -> None:
    pytest.importorskip("matplotlib")
    assert seen["plot"].code == 0, seen["plot"].err
    assert seen["tau"].code == 4
    assert seen["tau"].err.startswith("ltc: --plot-tau: ")
    assert inspect.LATER in seen["tau"].error
    assert len(seen["tau"].err.splitlines()) == 1
    assert seen["figures"].out == "curves.svg", "what is rejected draws nothing"


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("no text", 2, "--text"),
        ("damaged", 4, "training.json"),
        ("empty", 4, "training.json"),
        ("strange", 4, "training.json"),
        ("lost", 4, "model.safetensors"),
        ("pickled", 4, "pytorch_model.bin"),
    ],
)
def test_a_damaged_running_run_is_rejected(seen: dict[str, Outcome], name: str, code: int, said: str) -> None:
    assert (seen[name].code, seen[name].out) == (code, "")
    assert said in seen[name].error


def test_a_directory_that_is_no_run_is_rejected_as_before(tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    missing, rejected = ltc("inspect", tmp_path / "none"), ltc("inspect", tmp_path)
    assert (missing.code, rejected.code) == (4, 4)
    assert f"ltc train --out {tmp_path / 'none'}" in missing.error
    assert rejected.error.startswith(f"ltc: {tmp_path} ")
    assert "config.json" in rejected.error
