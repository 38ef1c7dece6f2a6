"""The documentation: commands and Python examples run, and every option, name and link in it exists."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parent.parent
EVERY_PAGE = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
RUN_PAGES = ["README.md", "docs/getting-started.md", "docs/how-to-choose-a-solver.md", "docs/states.md"]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    ((?:ltc|python|make|torchrun) .*(?:\\\n.*)*)", re.MULTILINE)
INLINE = re.compile(r"`((?:ltc|python benchmarks/|make )[^`]+)`")
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


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind == language]


def commands(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    lines = [re.split(r"  +#", line)[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture
def place(tmp_path: Path, run: Path) -> Path:
    """A reader's folder: a book, a trained run, the two scripts, the Makefile, and an installed environment."""
    (tmp_path / "book.txt").write_text(STORY)
    (tmp_path / "other-book.txt").write_text(STORY[:2000])
    files = ("train.py", "run.py", "Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml", "setup.py")
    for name in files:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (tmp_path / ".venv" / ".installed").touch()
    (tmp_path / ".venv" / ".dev").touch()
    shutil.copytree(run, tmp_path / "trained")
    return tmp_path


def execute(command: str, place: Path) -> None:
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
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", RUN_PAGES)
def test_commands_and_examples_run(page: str, place: Path) -> None:
    """The commands of a page in order, then its Python blocks as one script."""
    shell = [command for block in blocks(page, "sh") for command in commands(block)]
    trains = [command for command in shell if command.startswith("ltc train")]
    if all("--out" in command and "--out runs/book" not in command for command in trains):  # the page presumes a run
        (place / "runs").mkdir()
        (place / "trained").rename(place / "runs" / "book")
    for command in shell:
        execute(command, place)
    script = "\n".join(blocks(page, "python"))
    assert shell or script
    (place / "example.py").write_text(shorter(script))
    execute("python example.py", place)


def shown(page: str) -> list[str]:
    """Every command on a page: fenced, indented and inline."""
    text = (ROOT / page).read_text()
    found = [command for block in blocks(page, "sh") for command in commands(block)]
    found += [command for block in INDENTED.findall(text) for command in commands(block)]
    return found + [command.replace("\n", " ") for command in INLINE.findall(text)]


def options(command: str) -> list[str]:
    return re.findall(r"(?<!\S)\[?(--?[a-zA-Z][\w-]*)", command)


def examples_of_help() -> list[str]:
    from ltc_textgen.cli.main import app

    tree = typer.main.get_command(app)
    every = [tree.get_command(None, name) for name in tree.list_commands(None)]
    return [line for one in every for line in re.findall(r"`(ltc [^`]+)`", one.epilog or "")]


def test_commands_in_the_pages_exist_with_their_options() -> None:
    from ltc_textgen.cli.main import app

    tree = typer.main.get_command(app)
    wrong = []
    for page in [*EVERY_PAGE, "ltc --help"]:
        for command in examples_of_help() if page == "ltc --help" else shown(page):
            name = command.split()[1] if len(command.split()) > 1 else ""
            if not command.startswith("ltc ") or not name[0].islower():
                continue
            known = tree.get_command(None, name)
            if known is None:
                wrong.append(f"{page}: {command}")
                continue
            spelled = {o for p in known.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
            wrong += [f"{page}: {command}: {option}" for option in options(command) if option not in spelled]
    assert wrong == []


def test_settings_in_the_pages_exist() -> None:
    from ltc_textgen.presets.recipes import assignments

    for page in EVERY_PAGE:
        for setting in re.findall(r"--set ((?!key=)[a-z_]+=[^\s`\]]+)", (ROOT / page).read_text()):
            assignments([shlex.split(setting)[0]])


def test_benchmarks_in_the_pages_exist_with_their_options() -> None:
    scripts = {path.name: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
    for page in EVERY_PAGE:
        for command in shown(page):
            if match := re.match(r"python benchmarks/(\S+)", command):
                assert match[1] in scripts, f"{page}: {command}"
                for option in options(command):
                    assert option == "--help" or f'"{option}"' in scripts[match[1]], f"{page}: {command}: {option}"


def test_targets_in_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in EVERY_PAGE:
        for command in shown(page):
            if command.startswith("make "):
                targets = re.sub(r'\w+=(".*?"|\S+)', "", command).split()[1:]
                for target in targets:
                    assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: {command}"


def test_imports_in_the_pages_resolve() -> None:
    for page in EVERY_PAGE:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltc_textgen"):
                    module = importlib.import_module(node.module or "")
                    for alias in node.names:
                        name = f"{node.module}.{alias.name}"
                        assert hasattr(module, alias.name) or importlib.util.find_spec(name), f"{page}: {name}"


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_links_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        name, _, anchor = target.partition("#")
        if name.startswith("http"):
            continue
        linked = here / name if name else ROOT / page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.stem == "index" or f"({path.name})" in index, path.name


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
