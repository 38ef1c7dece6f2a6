"""`ltc generate`: prompts from files and pipes, states, stop strings, prompt after prompt."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import Outcome


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(content: bytes, kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> None:
        monkeypatch.setattr(sys, "stdin", kind(io.BytesIO(content), encoding="utf-8"))

    return put


def test_one_line_end_is_left_out_of_files_and_stdin(
    run: Path, tmp_path: Path, ltc: Callable[..., Outcome], typed: Callable[..., None]
) -> None:
    options = ("--seed", 1, "-n", 5, "--json")
    expected = json.loads(ltc("generate", run, "--prompt", "the sea", *options).out)
    path = tmp_path / "p.txt"
    for end in ("", "\n", "\r\n"):
        path.write_bytes(b"the sea" + end.encode())
        typed(b"the sea" + end.encode())
        for given in (("--prompt-file", path), ("--prompt", "-")):
            found = json.loads(ltc("generate", run, *given, *options).out)
            assert found["prompt"] == "the sea"
            assert found["samples"][0]["text"] == expected["samples"][0]["text"]
    path.write_text("the sea\n\n")
    assert json.loads(ltc("generate", run, "--prompt-file", path, *options).out)["prompt"] == "the sea\n"
    assert json.loads(ltc("generate", run, "--prompt", "the sea\n", *options).out)["prompt"] == "the sea\n"


def test_a_text_is_read_once_without_an_echo(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    state, options = tmp_path / "s", ("--prompt", " was", "--seed", 2, "-n", 20)
    read = ltc("generate", run, "--prompt", "the sea", "--save-state", state, "-n", 0)
    assert (read.code, read.out) == (0, "")
    assert state.is_file()
    whole = ltc("generate", run, "--prompt", "the sea was", *options[2:])
    assert "the sea" + ltc("generate", run, "--state", state, *options).out == whole.out
    assert ltc("generate", run, "-n", 0).code == 2


def test_a_stop_string_from_a_shell_is_a_line_end(run: Path, ltc: Callable[..., Outcome]) -> None:
    options = ("generate", run, "--prompt", "On day", "-n", 200, "--seed", 1, "--ignore-eos", "--json")
    (written,) = json.loads(ltc(*options).out)["samples"]
    assert "\n" in written["text"]
    (stopped,) = json.loads(ltc(*options, "--stop", r"\n").out)["samples"]
    assert (stopped["text"], stopped["finish_reason"]) == (written["text"].split("\n")[0], "stop")
    named = ltc(*options, "--stop", r"\newline")
    assert repr(r"\newline") in named.err


def test_prompt_after_prompt(
    run: Path, tmp_path: Path, ltc: Callable[..., Outcome], typed: Callable[..., None]
) -> None:
    state = tmp_path / "a state"
    ltc("generate", run, "--prompt", "the sea", "--save-state", state, "-n", 0)
    lines = ["On day", ":temperature 0", "On day", f":state '{state}'", " was", ":reset", "On day", "::x", "", ":seed"]
    typed("\n".join(lines).encode())
    result = ltc("generate", run, "-i", "--json", "--seed", 3, "-n", 10)
    assert result.code == 0, result.err
    documents = [json.loads(line) for line in result.out.splitlines()]
    assert [document["prompt"] for document in documents] == ["On day", "On day", " was", "On day", ":x", ""]
    assert [document["sampling"]["temperature"] for document in documents] == [0.8, 0.0, 0.0, 0.8, 0.8, 0.8]
    assert "seed 3" in result.err
    texts = [document["samples"][0]["text"] for document in documents]
    alone = json.loads(ltc("generate", run, "--prompt", "On day", "--json", "--seed", 3, "-n", 10).out)
    assert texts[0] == texts[3] == alone["samples"][0]["text"]
    follows = ltc("generate", run, "--state", state, "--prompt", " was", "--json", "--temperature", 0, "-n", 10)
    assert texts[2] == json.loads(follows.out)["samples"][0]["text"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (":temprature 1", "temperature"),
        (":temperature hot", "temperature"),
        (":top_p nan", "top_p"),
        (":seed 99999999999999999999", "seed"),
        (":state nowhere", "nowhere"),
        (":state", ":state"),
        (":stop 'a", "'a"),
        ("\xff", "byte 0"),
    ],
)
def test_a_wrong_line_is_one_message_and_the_next_line_is_read(
    line: str, named: str, run: Path, ltc: Callable[..., Outcome], typed: Callable[..., None]
) -> None:
    content = line.encode("latin-1") + b"\nthe sea\n:quit\nnever"
    typed(content)
    result = ltc("generate", run, "-i", "--seed", 3, "-n", 5)
    assert result.code == 2
    assert result.out.startswith("the sea")
    assert len(result.out.splitlines()) == 1
    (error,) = [line for line in result.err.splitlines() if line.startswith("ltc: ")]
    assert named in error
    typed(content, Terminal)
    assert ltc("generate", run, "-i", "--seed", 3, "-n", 5).code == 0


def test_prompts_come_from_one_place(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    for more in (("--prompt", "a"), ("--prompt-file", tmp_path), ("--save-state", tmp_path / "s")):
        assert ltc("generate", run, "-i", *more).code == 2


@pytest.mark.slow
def test_generation_imports_no_transformers(run: Path) -> None:
    import subprocess

    code = (
        "import sys; from ltc_textgen.cli import main; code = main.run(sys.argv[1:]); "
        "sys.exit(code or 9 * any(name in sys.modules for name in ('transformers', 'datasets', 'accelerate', 'rich')))"
    )
    command = [sys.executable, "-c", code, "generate", str(run), "-n", "3"]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_prompts_are_normalised_like_the_corpus(
    run: Path, tmp_path: Path, ltc: Callable[..., Outcome], typed: Callable[..., None]
) -> None:
    options = ("--seed", 1, "-n", 5, "--json")
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffThe sea\r\nwas \r\n".encode())
    typed(path.read_bytes())
    expected = json.loads(ltc("generate", run, "--prompt", "The sea\nwas ", *options).out)
    for given in (("--prompt-file", path), ("--prompt", "-")):
        found = json.loads(ltc("generate", run, *given, *options).out)
        assert found["prompt"] == "The sea\nwas "
        assert found["samples"][0]["text"] == expected["samples"][0]["text"]
        assert found["samples"][0]["prompt_tokens"] == 12
    path.write_bytes(b"the\0sea")
    assert ltc("generate", run, "--prompt-file", path).code == 2


def test_a_tilde_is_the_home_directory(
    run: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book").symlink_to(run)
    (tmp_path / "p.txt").write_text("the sea")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = ("--prompt-file", "~/p.txt", "--save-state", "~/s", "-n", 3)
    assert ltc("generate", "~/book", *options).code == 0
    assert (tmp_path / "s").is_file()
    for command in (
        ("generate", "~/book", "--state", "~/s"),
        ("eval", "~/book"),
        ("inspect", "~/book"),
        ("runs", "~/book"),
    ):
        result = ltc(*command)
        assert result.code == 0, result.err
    assert not (tmp_path / "~").exists()
