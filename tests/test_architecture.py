"""The tree is the architecture: imports point one way, files and functions stay small."""

import ast
import os
import re
from pathlib import Path

import house

PACKAGE = Path(__file__).parent.parent / "ltc_textgen"
PAGE = PACKAGE.parent / "docs" / "architecture.md"
FILES = sorted(PACKAGE.rglob("*.py"))
LARGEST_FILE, LARGEST_FUNCTION = 500, 60
"""Lines; a function's are counted without its docstring."""


MOST_SILENCED = 6
"""Lines of the package with a `type: ignore`."""


def drawn_floors() -> list[list[str]]:
    """The rooms of docs/architecture.md by floor, from the top of its drawing to the bottom."""
    (drawing,) = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [re.split(r" {3,}", line)[0].split() for line in drawing.splitlines()]


def test_imports_point_down_the_drawing_of_the_page() -> None:
    graph = house.import_graph(PACKAGE)
    assert house.floors(graph)
    floor = {room: number for number, rooms in enumerate(reversed(drawn_floors())) for room in rooms}
    assert set(floor) == set(graph) - {"__main__"}, "the rooms of the package and of docs/architecture.md differ"
    upward = [f"{a} imports {b}" for a in floor for b in graph[a] if floor[b] >= floor[a]]
    assert upward == []


def test_the_top_of_the_package_is_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_files_and_functions_stay_small() -> None:
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= LARGEST_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                lines = (node.end_lineno or 0) - node.lineno - docstring.count("\n")
                assert lines <= LARGEST_FUNCTION, f"{path}: {node.name} has {lines} lines"


def test_few_lines_silence_the_type_checker() -> None:
    silenced = [f"{path}: {line}" for path in FILES for line in path.read_text().splitlines() if "type: ignore" in line]
    assert len(silenced) <= MOST_SILENCED, silenced


def test_no_file_names_a_machine() -> None:
    root, home = PACKAGE.parent, os.sep + "ro" + "ot" + os.sep
    places = [*root.glob("*.*"), *root.glob("docs/*"), *root.glob("benchmarks/*"), *FILES, *root.glob("tests/**/*.py")]
    for path in places:
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".cpp", ".h"}:
            text = path.read_text()
            assert home not in text, path
            assert "/wo" + "rk/" not in text, path
