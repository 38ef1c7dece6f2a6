"""`ltc inspect`, `ltc eval`, `ltc generate`: damaged curves, plots, couplings, named corpora, bars, EOS tokens."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hub import Hub
from outcomes import STORY, TINY, Outcome
from rich.console import Console

from ltc_textgen.cli import common, curves, evaluate, plots
from ltc_textgen.config import SamplingConfig
from ltc_textgen.data import corpora
from ltc_textgen.generation import generate
from ltc_textgen.runs import load_run


def test_lines_of_a_curve_that_are_none_are_left_out(run: Path, ltc: Callable[..., Outcome]) -> None:
    before = json.loads(ltc("inspect", run, "--json").out)["curve"]
    metrics = run / "metrics.jsonl"
    whole = metrics.read_bytes()
    try:
        metrics.write_bytes(b'5\n{"step": 3, "val_loss": null}\n[1]\n' + whole + b'{"step": 160, "val_lo')
        assert json.loads(ltc("inspect", run, "--json").out)["curve"] == before
        assert ltc("inspect", run).code == 0
    finally:
        metrics.write_bytes(whole)


@pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])
def test_the_closed_form_shows_time_constants_too(
    mode: str, story: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[model]\ncoupling = "cfc"\ncfc_mode = "{mode}"\n')
    made = ltc("train", "--data", story, "--config", recipe, "--max-steps", 1, "--out", tmp_path / "run", *TINY)
    assert made.code == 0, made.err
    (layer,) = json.loads(ltc("inspect", tmp_path / "run", "--json").out)["time_constants"]
    assert 0 < layer["q0"] <= layer["q50"]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_time_constants_are_drawn(
    suffix: str, run: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    figures = []
    original = plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *size: (figures.append(original(*size)), figures[-1])[1])
    path = tmp_path / f"tau.{suffix}"
    result = ltc("inspect", run, "--text", "the sea\n$5$", "--plot-tau", path)
    assert result.code == 0, result.err
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    ((_, panels),) = figures
    report = json.loads(ltc("inspect", run, "--text", "the sea\n$5$", "--json").out)
    assert len(panels) == len(report["time_constants"])
    for axes, row in zip(panels, report["time_constants"], strict=True):
        assert axes.get_yscale() == "log"
        values = [value for line in axes.lines for value in line.get_ydata()]
        assert len(axes.lines) == plots.NEURONS
        assert len(values) == plots.NEURONS * 11
        assert row["q0"] <= min(values) <= max(values) <= row["q100"]
        assert len({line.get_ydata()[0] for line in axes.lines}) == plots.NEURONS, "different neurons"
    labels = [label.get_text() for label in panels[-1].get_xticklabels()]
    assert labels[:8] == ["t", "h", "e", "\u2423", "s", "e", "a", "\u21b5"]
    assert ltc("inspect", run, "--plot-tau", tmp_path / "tau.nonsense").code == 2


def test_the_curve_is_drawn(
    run: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    figures = []
    original = plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *size: (figures.append(original(*size)), figures[-1])[1])
    assert ltc("inspect", run, "--plot", tmp_path / "curve.svg").code == 0
    ((_, (losses, rate, speed)),) = figures
    report = json.loads(ltc("inspect", run, "--json").out)
    assert [line.get_label() for line in losses.lines] == ["training loss", "validation loss"]
    training, validation = losses.lines
    assert list(training.get_xdata()) == [record["step"] for record in report["steps"]]
    assert list(training.get_ydata()) == [record["loss"] for record in report["steps"]]
    assert list(validation.get_ydata()) == [record["val_loss"] for record in report["curve"]]
    assert [axes.get_ylabel() for axes in (losses, rate, speed)] == ["nats per token", "learning rate", "tokens/s"]
    assert list(rate.lines[0].get_ydata()) == [record["learning_rate"] for record in report["steps"]]
    assert list(speed.lines[0].get_ydata()) == [record["tokens_per_second"] for record in report["steps"]]
    (run / "metrics.jsonl").rename(run / "kept")
    try:
        assert ltc("inspect", run, "--plot", tmp_path / "none.svg").code == 2
    finally:
        (run / "kept").rename(run / "metrics.jsonl")


def test_curves_on_a_terminal(run: Path, ltc: Callable[..., Outcome]) -> None:
    shown = ltc("inspect", run).out.splitlines()
    report = json.loads(ltc("inspect", run, "--json").out)
    lines = {name: next(line for line in shown if line.startswith(name)) for name in curves.CURVES}
    first, last = report["steps"][0], report["steps"][-1]
    assert f"{first['loss']:.3f}" in lines["training loss"]
    assert f"{last['learning_rate']:.2g}" in lines["learning rate"]
    assert f"{last['tokens_per_second']:,.0f}" in lines["tokens/s"]
    assert f"{report['curve'][-1]['val_loss']:.3f}" in lines["validation loss"]
    for line in lines.values():
        assert sum(character in curves.SPARKS for character in line) > 2
        assert len(line) <= 80


def test_long_curves_are_drawn_in_few_columns() -> None:
    curve = [(step, float(step)) for step in range(0, 1000, 10)]
    assert curves.resampled(curve, 10) == [45.0 + 100 * n for n in range(10)]
    assert curves.resampled(curve[:7], 10) == [float(step) for step, _ in curve[:7]]
    gap = [*curve[:20], (990, 5.0)]
    assert curves.resampled(gap, 10) == [45.0, 145.0, *[145.0] * 7, 5.0]
    assert curves.spark([1.0, 1.0]) == curves.SPARKS[0] * 2


def test_a_corpus_with_a_name_is_measured_whole(
    run: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [STORY[:900], STORY[900:2000]]
    monkeypatch.setattr(corpora, "embedded_documents", lambda: iter(documents))
    monkeypatch.setattr(corpora, "embedded_fingerprint", lambda: "0" * 64)
    whole = json.loads(ltc("eval", run, "--data", "embedded", "--json").out)
    assert whole["bytes"] == 2000
    part = json.loads(ltc("eval", run, "--data", "embedded", "--split", "valid", "--json").out)
    assert part["bytes"] == 200


@pytest.mark.slow
def test_all_of_a_data_set_is_each_of_its_splits_once(hub: Hub, run: Path, ltc: Callable[..., Outcome]) -> None:
    hub.add_dataset("some/set", {name: {"text": [name]} for name in ("train", "validation", "test")})
    everything = json.loads(ltc("eval", run, "--data", "some/set", "--json").out)
    assert everything["bytes"] == len("trainvalidationtest")
    hub.add_dataset("some/cut", {name: {"text": ["a text to cut"]} for name in ("train", "test")})
    assert json.loads(ltc("eval", run, "--data", "some/cut", "--json").out)["bytes"] == 2 * len("a text to cut")


def test_a_bar_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with common.progress_bar("reading", io.StringIO()) as advance:
        assert advance is None
    shown = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.console.Console", lambda file: Console(file=file, force_terminal=True, width=100))
    with common.progress_bar("reading", shown) as advance:
        assert advance is not None
        advance(1500, 3000)
    assert "1,500 of 3,000 tokens" in shown.getvalue()


def test_evaluation_reports_progress(run: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[int, int]] = []

    @contextmanager
    def remembering(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: reported.append((done, total))

    monkeypatch.setattr(evaluate, "progress_bar", remembering)
    tokens = json.loads(ltc("eval", run, "--json").out)["tokens"]
    assert reported[-1] == (tokens, tokens)


def test_a_likely_eos_token_is_never_drawn_if_asked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(run)
    eos = loaded.tokenizer.eos_token_id
    logits = loaded.model.lm_head.logits

    def likely(hidden: torch.Tensor) -> torch.Tensor:
        return logits(hidden).index_fill(-1, torch.tensor([eos]), 1e4)

    monkeypatch.setattr(loaded.model.lm_head, "logits", likely)
    for ignored, reason, tokens in ((False, "stop", 1), (True, "length", 30)):
        sampling = SamplingConfig(max_tokens=30, ignore_eos=ignored, seed=0)
        (sample,) = generate(loaded.model, loaded.tokenizer, "On", sampling)
        assert (sample.finish_reason, sample.tokens) == (reason, tokens)


def test_doctor_reports_the_threads_that_are_used(monkeypatch: pytest.MonkeyPatch, ltc: Callable[..., Outcome]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr("ltc_textgen.devices.cpu_limits", lambda: {"cores": 2, "quota": 0.5})
    try:
        report = json.loads(ltc("doctor", "--json").out)
    finally:
        torch.set_num_threads(before)
    assert report["machine"]["threads"] == 1
    assert "2 threads" not in report["kernels"]["cpu"]
