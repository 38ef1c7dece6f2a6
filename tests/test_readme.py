"""Every command and every Python example of the README and the guides runs, in order, with shorter times."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/getting-started.md", "docs/how-to-choose-a-solver.md"]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STORY = "".join(
    f"On day {day} the sea was {'calm' if day % 3 else 'wild'}. The boat came home.\n" for day in range(400)
)
SHORTER = [
    (r"--time-budget \S+", "--time-budget 2s"),
    (r"--epochs \d+", "--max-steps 3"),
    (r"--max-tokens \d+", "--max-tokens 8"),
    (r"max_tokens=\d+", "max_tokens=8"),
    (r"time_budget=[\d.]+", "time_budget=2.0"),
    (r"--preset char-best", "--preset char-best --time-budget 2s"),
]
SMALL = " --set hidden_size=16 --set num_layers=1 --set batch_size=4"


def shorter(text: str) -> str:
    for pattern, replacement in SHORTER:
        text = re.sub(pattern, replacement, text)
    return text


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text())


def commands(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as a reader has it: a book, the two scripts, the Makefile, and an environment that is installed."""
    (tmp_path / "book.txt").write_text(STORY)
    (tmp_path / "other-book.txt").write_text(STORY[:2000])
    for name in (
        "train.py",
        "run.py",
        "Makefile",
        "requirements.txt",
        "requirements-dev.txt",
        "pyproject.toml",
        "setup.py",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (tmp_path / ".venv" / ".installed").touch()
    (tmp_path / ".venv" / ".dev").touch()
    return tmp_path


def run(command: str, place: Path) -> None:
    if command.startswith("make "):
        dry = "" if command == "make run" else "-n"
        command = f"make {dry} {command.removeprefix('make ')} ARGS='--max-steps 2{SMALL}'"
    elif command.startswith(("ltc train", "python train.py")) and "--resume" not in command:
        command = shorter(command) + SMALL
    else:
        command = shorter(command)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=place,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.slow
def test_every_command_runs(page: str, place: Path) -> None:
    ran = 0
    for language, block in blocks(page):
        if language == "python":
            (place / "example.py").write_text(shorter(block))
            run("python example.py", place)
            ran += 1
        for command in commands(block) if language == "sh" else []:
            run(command, place)
            ran += 1
    assert ran > 0


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "docs/architecture.md", "docs/command-line.md"])
def test_links_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert target.startswith("http") or (here / target).exists(), target


def test_requirements_are_pins_within_the_ranges_of_the_project() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, wanted in (
        ("requirements.txt", project["dependencies"]),
        ("requirements-dev.txt", project["optional-dependencies"]["dev"]),
    ):
        lines = (ROOT / name).read_text().splitlines()
        pins = {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}
        ranges = {r.name: r for r in map(Requirement, wanted)}
        assert pins.keys() == ranges.keys(), name
        for package, pin in pins.items():
            (specifier,) = pin.specifier
            assert specifier.operator == "==", package
            assert ranges[package].specifier.contains(specifier.version), package
