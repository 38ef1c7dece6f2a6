"""The tree is the architecture: imports point one way, files and functions stay small."""

import ast
import os
from graphlib import CycleError
from pathlib import Path

import house

PACKAGE = Path(__file__).parent.parent / "ltc_textgen"
FILES = sorted(PACKAGE.rglob("*.py"))
LARGEST_FILE, LARGEST_FUNCTION = 500, 60
"""Lines; a function's are counted without its docstring."""


def test_imports_point_one_way() -> None:
    try:
        floors = house.floors(house.import_graph(PACKAGE))
    except CycleError as error:
        raise AssertionError(f"these import each other: {' -> '.join(error.args[1])}") from None
    order = [name for names in floors for name in names]
    assert order.index("config") < order.index("layers") < order.index("model") < order.index("hf")
    assert order.index("hf") < order.index("training") < order.index("cli")


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


def test_no_file_names_a_machine() -> None:
    root, home = PACKAGE.parent, os.sep + "ro" + "ot" + os.sep
    places = [*root.glob("*.*"), *root.glob("docs/*"), *root.glob("benchmarks/*"), *FILES, *root.glob("tests/**/*.py")]
    for path in places:
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".cpp", ".h"}:
            text = path.read_text()
            assert home not in text, path
            assert "/wo" + "rk/" not in text, path
