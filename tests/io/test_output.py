"""Output on any stream: encodings, terminals, closed streams, full disks."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltc_textgen.io import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def written(to: io.TextIOWrapper) -> bytes:
    to.flush()
    content: io.BytesIO = to.buffer  # type: ignore[assignment]
    return content.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "latin-1", "utf-16"])
def test_any_text_can_be_written(encoding: str) -> None:
    to = stream(encoding)
    output.print_line("é—Ж\udcff\u2028", to)
    assert written(to)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16"])
def test_json_stays_json(encoding: str) -> None:
    document = {"é—Ж": ["\x1b[31m\x9b\u2028\udcff", float("nan"), {"a": float("-inf")}, (1, 2.5)]}
    to = stream(encoding)
    output.print_json(document, to)
    text = written(to).decode(encoding)
    assert json.loads(text) == {"é—Ж": ["\x1b[31m\x9b\u2028\udcff", None, {"a": None}, [1, 2.5]]}
    assert text.count("\n") == 1
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in text.rstrip("\n"))


def test_control_characters_are_escaped_on_a_terminal_and_kept_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    text = "a\x1b]0;x\x07\tb\r\n\u202ec\x9bd\x7f"
    for to in (terminal, pipe):
        output.write(text, to)
    assert pipe.getvalue() == text
    assert terminal.getvalue() == "a\\x1b]0;x\\x07\tb\\r\n\\u202ec\\x9bd\\x7f"


def test_messages_are_escaped_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_message("a\x1b[31m")
    assert capsys.readouterr().err == "a\\x1b[31m\n"
    assert output.one_line(ValueError("a\n  b\x07")) == "a b\\x07"
    assert output.one_line(KeyError()) == "KeyError"


CODE = "from ltc_textgen.io import output; output.prepare_streams(); "


def test_a_closed_descriptor_is_not_given_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = CODE + f"f = open({str(path)!r}, 'w'); output.print_line('x'); output.print_message('y'); print(f.fileno())"
    shell = f'{sys.executable} -c "$CODE" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell], env={**os.environ, "CODE": code}).returncode == 0
    assert path.read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_on_stdout_and_none_on_stderr() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ltc_textgen", "--version"]
        failed = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert failed.returncode == 1
        assert failed.stderr.startswith("ltc: stdout: ")
        assert failed.stderr.count("\n") == 1
        helped = subprocess.run([*command[:-1], "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert (helped.returncode, helped.stderr.count("\n")) == (1, 1)
        wrong = subprocess.run([*command[:-1], "frobnicate"], stdout=subprocess.PIPE, stderr=full)
        assert wrong.returncode == 2


def test_a_reader_that_left_is_no_error() -> None:
    code = CODE + "import sys; from ltc_textgen.cli import main; sys.exit(main.run(['--version']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
