"""The command line: stdout and stderr, messages, and exit codes."""

import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outcomes import STORY, TINY, Outcome
from safetensors.torch import load_file

from ltc_textgen.cli.common import seconds
from ltc_textgen.errors import UsageError

ROOT = Path(__file__).parents[2]


# --- what each command gives


def test_training_leaves_what_it_promised(story: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    result = ltc("train", "--data", story, "--max-steps", 8, "--out", tmp_path / "run", *TINY)
    assert result.code == 0, result.err
    for word in ("validation loss", "perplexity", "bits per byte", "sample"):
        assert word in result.out
    assert "recipe: char-fast" in result.err
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json", "metrics.jsonl"} <= names
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("val_loss" in line for line in lines)


def test_training_json_is_one_document_and_its_events_are_lines(
    story: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    result = ltc("train", "--data", story, "--max-steps", 3, "--out", tmp_path / "run", "--json", *TINY)
    document = json.loads(result.out)
    assert document["step"] == 3
    assert document["bits_per_byte"] > 0
    assert document["perplexity"] > 1
    events = [json.loads(line) for line in result.err.splitlines()]
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert any(note.startswith("recipe: char-fast") for note in notes)
    assert sum("tokens" in note for note in notes) >= 1


def test_the_sample_of_a_report_is_what_generate_writes(
    story: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    trained = ltc("train", "--data", story, "--max-steps", 3, "--out", tmp_path / "run", "--json", *TINY)
    document = json.loads(trained.out)
    assert document["memory"] is not None
    written = ltc("generate", tmp_path / "run", "--max-tokens", 120, "--seed", 0, "--json")
    assert document["sample"] == json.loads(written.out)["samples"][0]["text"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are not UTF-8")
def test_a_run_directory_whose_name_is_not_utf_8(story: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    place = tmp_path / os.fsdecode(b"n\xe9m")
    options = ("--out", place, "--max-steps", 3, *TINY)
    for command in (
        ("train", "--data", story, *options),
        ("train", "--resume", "--out", place, "--set", "max_steps=5"),
        ("generate", place, "--max-tokens", 3),
        ("eval", place, "--data", story),
        ("inspect", place),
    ):
        done = ltc(*command)
        assert done.code == 0, done.err


def test_a_run_that_ended_resumes_to_the_same_result(run: Path, ltc: Callable[..., Outcome]) -> None:
    before = (run / "model.safetensors").read_bytes()
    result = ltc("train", "--resume", "--out", run)
    assert result.code == 0, result.err
    assert "150 steps" in result.out
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_training_json_of_a_run_is_a_recipe(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    again = ltc("train", "--config", run / "training.json", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "again", run))
    assert all(bool((tensor == theirs[name]).all()) for name, tensor in ours.items())


def test_generated_text_begins_with_the_prompt_and_repeats_with_its_seed(
    run: Path, ltc: Callable[..., Outcome]
) -> None:
    options = ("generate", run, "--prompt", "On day", "--max-tokens", 40, "--temperature", 1, "--seed", 3)
    first, second = ltc(*options), ltc(*options)
    assert first.code == 0, first.err
    assert first.out.startswith("On day")
    assert len(first.out) > 20
    assert first.out == second.out
    assert "seed 3" in first.err
    assert ltc(*options[:-1], 4).out != first.out
    document = json.loads(ltc(*options, "--json").out)
    assert "On day" + document["samples"][0]["text"] == first.out.removesuffix("\n")
    assert document["samples"][0]["finish_reason"] == "length"


def test_several_samples(run: Path, ltc: Callable[..., Outcome]) -> None:
    result = ltc("generate", run, "--prompt", "On", "--num-samples", 3, "--max-tokens", 10, "--seed", 0)
    assert [line for line in result.out.splitlines() if line.startswith("---")] == [
        f"--- sample {number} of 3" for number in (1, 2, 3)
    ]
    options = ("--prompt", "On", "--num-samples", 3, "--max-tokens", 10, "--seed", 0, "--ignore-eos")
    assert "\n30 tokens, " in "\n" + ltc("generate", run, *options).err


@pytest.mark.slow
def test_a_prompt_from_a_file_and_from_stdin(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("the boat")
    options = ("--max-tokens", "8", "--seed", "1")
    expected = ltc("generate", run, "--prompt", "the boat", *options).out
    assert ltc("generate", run, "--prompt-file", prompt, *options).out == expected
    piped = subprocess.run(
        [sys.executable, "-m", "ltc_textgen", "generate", run, "--prompt", "-", *options],
        input="the boat", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert piped.stdout == expected


def test_evaluation_agrees_with_training(run: Path, story: Path, ltc: Callable[..., Outcome]) -> None:
    scores = json.loads(ltc("eval", run, "--json").out)
    names = {"nll_per_token", "perplexity", "word_perplexity", "bits_per_byte", "tokens", "words", "bytes"}
    assert names <= set(scores)
    facts = json.loads((run / "training.json").read_text())["facts"]
    assert scores["tokens"] == facts["valid_tokens"] - 1
    assert scores["nll_per_token"] == pytest.approx(facts["result"]["best_val_loss"], rel=0.02)
    whole = json.loads(ltc("eval", run, "--data", story, "--json").out)
    assert whole["bytes"] == len(STORY.encode())
    windows = json.loads(ltc("eval", run, "--data", story, "--window", 8, "--json").out)
    assert windows["window"] == 8
    assert windows["nll_per_token"] > whole["nll_per_token"]
    assert "bits per byte" in ltc("eval", run).out


def test_inspection(run: Path, ltc: Callable[..., Outcome]) -> None:
    shown = ltc("inspect", run)
    assert shown.code == 0, shown.err
    assert "time constants, in tokens" in shown.out
    assert [
        line
        for line in shown.out.splitlines()
        if len(line) > 80 and str(run.parent) not in line and "story" not in line
    ] == []
    report = json.loads(ltc("inspect", run, "--json").out)
    assert report["parameters"] > 0
    (*_, layer) = report["time_constants"]
    assert 0 < layer["q0"] <= layer["q50"] <= layer["q100"]
    assert [line["step"] for line in report["curve"]][-1] == 150


def test_doctor_shows_where_the_default_corpus_comes_from(ltc: Callable[..., Outcome]) -> None:
    report = json.loads(ltc("doctor", "--json").out)
    assert set(report) == {"versions", "machine", "kernels", "data"}
    assert "text inside Python" in report["data"]["`ltc train` reads"]
    assert "torch" in ltc("doctor").out


# --- help


@pytest.mark.parametrize("command", ["train", "generate", "eval", "inspect", "bench", "doctor"])
def test_every_help_page_has_examples(command: str, ltc: Callable[..., Outcome]) -> None:
    page = ltc(command, "--help")
    assert page.code == 0
    assert f"ltc {command}" in page.out.split("Examples:")[1]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from ltc_textgen.cli import main; main.run(['--help']); print(*sys.modules, file=sys.stderr)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    heavy = {"torch", "transformers", "datasets", "numpy", "tokenizers", "huggingface_hub", "matplotlib", "safetensors"}
    assert not heavy & set(modules)


def test_every_setting_is_listed(ltc: Callable[..., Outcome]) -> None:
    listed = ltc("train", "--list-settings").out
    assert "learning_rate = 0.006" in listed
    assert "solver = semi_implicit" in listed
    assert "input_size" not in listed
    assert max(map(len, listed.splitlines())) <= 80


# --- what is rejected, and how


def text(content: bytes, name: str = "bad.txt") -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        path = directory / name
        path.write_bytes(content)
        return path

    return make


BAD_DATA = {
    "empty": (text(b""), "bad.txt"),
    "blank": (text(b" \n\n \t\n"), "bad.txt"),
    "binary": (text(bytes(range(256)) * 40), "bad.txt"),
    "invalid utf-8": (text(b"caf\xe9 " * 50), "byte 3"),
    "shorter than a window": (text(b"To be"), " 5 tokens"),
    "one distinct character": (text(b"a" * 5000), "bad.txt"),
    "missing": (lambda directory: directory / "none.txt", "none.txt"),
    "truncated parquet": (text(b"PAR1 and then nothing", "bad.parquet"), "bad.parquet"),
    "truncated gzip": (text(gzip.compress(STORY.encode())[:-40], "bad.txt.gz"), "bad.txt.gz"),
    "jsonl without text": (text(b'{"text": "fine"}\n{"body": "?"}\n', "bad.jsonl"), "bad.jsonl"),
    "jsonl that is not": (text(b'{"text": "fine"}\nnot json\n', "bad.jsonl"), "bad.jsonl"),
    "no hub": (lambda directory: Path("wikitext-2"), "HF_ENDPOINT"),
    "unknown data set": (lambda directory: Path("nobody/nothing"), "nobody/nothing"),
}


@pytest.mark.parametrize("make", BAD_DATA)
def test_bad_data_is_code_3_and_one_line(make: str, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    prepare, message = BAD_DATA[make]
    result = ltc("train", "--data", prepare(tmp_path), "--max-steps", 2, "--out", tmp_path / "run", *TINY)
    assert result.code == 3, result.err
    assert message in result.error
    assert result.error.startswith("ltc: ")
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command"),
        (["train", "--epoch", "3"], "--epoch"),
        (["train", "--time-budget", "soon"], "'soon'"),
        (["train", "--epochs", "1", "--max-steps", "5"], "epochs"),
        (["train", "--set", "hiden_size=3"], "'hidden_size'"),
        (["train", "--set", "hidden_size=-3"], "hidden_size"),
        (["train", "--set", "learning_rate=0"], "train.learning_rate"),
        (["train", "--preset", "char-slow"], "char-fast"),
        (["train", "--config", "none.toml"], "none.toml"),
        (["train", "--device", "tpu9"], "tpu9"),
        (["train", "--tokenizer", "sentencepeace"], "sentencepeace"),
        (["generate", "RUN", "--temperature", "-1"], "temperature"),
        (["generate", "RUN", "--top-p", "2"], "top_p"),
        (["generate", "RUN", "--max-tokens", "0"], "--max-tokens"),
        (["generate", "RUN", "--prompt", "a", "--prompt-file", "b"], "--prompt-file"),
        (["generate", "RUN", "--prompt-file", "none"], "none"),
        (["eval", "RUN", "--split", "half"], "--split"),
        (["eval", "RUN", "--window", "0"], "window"),
        (["inspect", "RUN", "--plot", "curve.nonsense"], "curve.nonsense"),
    ],
)
def test_wrong_use_is_code_2_and_one_line(
    arguments: list[str], message: str, run: Path, story: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    filled = [str(run) if argument == "RUN" else argument for argument in arguments]
    if arguments[0] == "train":
        filled += ["--data", str(story), "--out", str(tmp_path / "run")]
    result = ltc(*filled)
    assert result.code == 2, result.err
    assert message in result.error
    assert len(result.err.strip().splitlines()) == 1
    assert result.out == ""


@pytest.mark.parametrize("command", ["generate", "eval", "inspect"])
def test_a_missing_run_is_code_4(command: str, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    result = ltc(command, tmp_path / "none")
    assert result.code == 4
    assert str(tmp_path / "none") in result.error


def test_damaged_weights_are_code_4(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    for path in run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    result = ltc("generate", tmp_path, "--prompt", "On")
    assert result.code == 4
    assert "model.safetensors" in result.error
    assert result.out == ""


def test_a_directory_that_holds_another_run_is_left_alone(run: Path, story: Path, ltc: Callable[..., Outcome]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = ltc("train", "--data", story, "--max-steps", 2, "--out", run, *TINY)
    assert result.code == 2
    assert "--resume" in result.error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_named(story: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    result = ltc("train", "--data", story, "--max-steps", 2, "--out", tmp_path / "run", *TINY)
    tmp_path.chmod(stat.S_IRWXU)
    assert result.code == 1
    assert "run" in result.error


def test_an_out_that_cannot_be_a_directory_is_named(story: Path, ltc: Callable[..., Outcome]) -> None:
    result = ltc("train", "--data", story, "--max-steps", 2, "--out", story / "run", *TINY)
    assert result.code in (1, 2)
    assert "story" in result.error
    assert "internal error" not in result.error


def test_an_unforeseen_error_is_one_line_and_a_traceback_on_demand(
    run: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr("ltc_textgen.runs.load_run", fail)
    monkeypatch.setenv("LTC_DEBUG", "")
    quiet = ltc("inspect", run)
    assert quiet.code == 1
    assert "RuntimeError: the sky fell" in quiet.error
    assert "Traceback" not in quiet.err
    assert "Traceback" in ltc("--debug", "inspect", run).err


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_130_and_resume_continues(story: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ltc_textgen", "train", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--data", str(story), "--max-steps", "1000000", *TINY, "--set", "save_steps=50"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not list(out.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    saved = max(int(path.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*"))
    resumed = subprocess.run([*command, "--resume", "--max-steps", str(saved + 3)], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"step {saved}," in resumed.stderr


@pytest.fixture
def endless(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Generation that has begun and does not end by itself."""
    command = [sys.executable, "-m", "ltc_textgen", "generate", str(run), "--max-tokens", "10000000"]
    process = subprocess.Popen(
        [*command, "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests run in the background of a shell, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert len(process.stdout.read(20)) == 20
    yield process
    process.kill()
    process.wait()


def test_output_into_a_closed_pipe_is_no_error(endless: subprocess.Popen[bytes]) -> None:
    assert endless.stdout is not None
    assert endless.stderr is not None
    endless.stdout.close()
    assert endless.wait(timeout=60) == 0
    assert endless.stderr.read() == b""
    endless.stderr.close()


@pytest.mark.slow
def test_ctrl_c_while_writing_is_one_line(endless: subprocess.Popen[bytes]) -> None:
    endless.send_signal(signal.SIGINT)
    _, err = endless.communicate(timeout=60)
    assert endless.returncode == 130
    assert err.decode().strip() == "ltc: stopped"


@pytest.fixture
def ascii_environment() -> dict[str, str]:
    return {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.slow
def test_a_terminal_without_unicode_shows_escapes(run: Path, ascii_environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "ltc_textgen", "generate", str(run), "--prompt", "é—", "--max-tokens", "5"]
    shown = subprocess.run(command, capture_output=True, text=True, env=ascii_environment)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(r"\xe9\u2014")


@pytest.mark.parametrize(("text_", "value"), [("80s", 80), ("15m", 900), ("1h30m", 5400), ("2.5", 2.5), ("1d", 86400)])
def test_durations(text_: str, value: float) -> None:
    assert seconds(text_) == value


@pytest.mark.parametrize("wrong", ["", "s", "-5s", "0", "5 parsecs", "1m1x"])
def test_what_is_no_duration(wrong: str) -> None:
    with pytest.raises(UsageError):
        seconds(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "run.py"])
def test_the_scripts_are_the_commands(script: str) -> None:
    page = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    assert ("Train a network" if script == "train.py" else "generate") in page
