"""The public names have real types: a program that uses them all passes a strict checker."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ltc_textgen

PROGRAM = Path(__file__).with_name("user_program.py")


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent", str(path)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)


@pytest.mark.slow
def test_a_user_program_is_typed(tmp_path: Path) -> None:
    done = check(PROGRAM)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.py"
    broken.write_text("from ltc_textgen import load_run\nx: int = load_run('a')\n")
    assert check(broken).returncode == 1, "a name that is Any would pass"


def test_the_program_uses_every_public_name() -> None:
    words = set(re.findall(r"\w+", PROGRAM.read_text()))
    assert set(ltc_textgen.__all__) <= words
    assert set(ltc_textgen._MODULES) | {"analysis", "layers"} == set(ltc_textgen.__all__)
