"""`ltc runs` and `ltc inspect A B`: several runs side by side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import Outcome

from ltc_textgen.cli import curves, main, runs


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of them damaged, in folders of different depth."""
    top = tmp_path_factory.mktemp("several")
    shutil.copytree(run, top / "a")
    shutil.copytree(run, top / "deeper" / "b \x1b[31m")
    kept = [line for line in (top / "a" / "metrics.jsonl").read_text().splitlines() if '"step": 150' not in line]
    (top / "a" / "metrics.jsonl").write_text("\n".join(kept))
    content = json.loads((top / "a" / "training.json").read_text())
    content["run"]["train"]["seed"] = 7
    (top / "a" / "training.json").write_text(json.dumps(content))
    (top / "broken").mkdir()
    (top / "broken" / "training.json").write_text("[" * 100_000)
    (top / "loop").symlink_to(top)
    return top


def test_runs_below_a_folder(folder: Path, ltc: Callable[..., Outcome]) -> None:
    rows = json.loads(ltc("runs", folder, "--json").out)
    assert [Path(row["run"]).name for row in rows][2] == "broken"
    best, other, broken = rows
    assert best["loss"] <= other["loss"]
    assert best["parameters"] > 0
    assert {best["step"], other["step"]} > {150}
    assert best["tokenizer"] == "char"
    assert broken["loss"] is None
    assert broken["parameters"] is None


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_fits_the_terminal(
    columns: str, folder: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = ltc("runs", folder).out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= int(columns)
    assert "\x1b" not in "".join(lines)


def test_no_runs_is_code_4(tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    for path in (tmp_path, tmp_path / "none"):
        result = ltc("runs", path)
        assert (result.code, result.out) == (4, "")
        assert str(path) in result.error


def test_runs_are_compared(folder: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    first, second = folder / "a", folder / "deeper" / "b \x1b[31m"
    shown = ltc("inspect", first, second)
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert any(line.split()[:2] == ["train.seed", "7"] for line in lines)
    drawn = [line for line in lines if set(line) & set(curves.SPARKS)]
    assert len(drawn) == 4
    documents = json.loads(ltc("inspect", first, second, "--json").out)
    assert documents[str(first)] == json.loads(ltc("inspect", first, "--json").out)
    assert ltc("inspect", first, second, "--plot-tau", tmp_path / "x.svg").code == 2
    pytest.importorskip("matplotlib")
    assert ltc("inspect", first, second, "--plot", tmp_path / "x.svg").code == 0
    assert b"b" in (tmp_path / "x.svg").read_bytes()


def test_curves_on_common_axes() -> None:
    early = [(step, 4.0) for step in range(0, 50)]
    assert curves.resampled(early, 4, (0, 100)) == [4.0, 4.0, None, None]
    assert curves.spark([4.0, None, 1.0], (1.0, 4.0)) == "█ ▁"


def test_lines_of_json_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    texts = ["a\u0085b\u2028c\x1cd\x0be"]
    path.write_text("\n".join(json.dumps({"step": 1, "sample": text}, ensure_ascii=False) for text in texts) + "\n")
    path.write_bytes(path.read_bytes() + b'{"step": 1' + b"0" * 400 + b'}\n\xff\n{"step": ' + b"9" * 5000 + b"}\n")
    (line,) = [line for line in curves.read_metrics(path) if "sample" in line]
    assert line["sample"] == texts[0]


def test_each_command_has_its_line() -> None:
    import typer

    group = typer.main.get_command(main.app)
    for name, (_, summary) in main.COMMANDS.items():
        command = group.get_command(None, name)
        assert command.help.split("\n")[0].startswith(summary.rstrip(".").split(":")[0].split(",")[0])


def test_sizes_are_short() -> None:
    values = [None, 0, 999, 1_000, 815_780, 999_600, 1_600_000, 12_345_678, 10**13]
    assert [runs._short(value) for value in values] == ["-", "0", "999", "1.0k", "816k", "1.0M", "1.6M", "12M", "10T"]
