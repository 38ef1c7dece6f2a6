"""Docstrings of the package: examples run, and none is empty."""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "ltc_textgen").rglob("*.py"))
FEWEST_WORDS = 4


def public(name: str) -> bool:
    return not name.startswith("_") or name.startswith("__")


def definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Classes, functions and methods, without those of private classes or inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
        if isinstance(child, ast.ClassDef) and public(child.name):
            yield from definitions(child)


def docstrings(path: Path) -> dict[str, str]:
    """Name -> docstring of everything in a file that has one, the module included."""
    tree = ast.parse(path.read_text())
    named = {path.stem: ast.get_docstring(tree)}
    named |= {f"{node.name}, line {node.lineno}": ast.get_docstring(node) for node in definitions(tree)}
    return {name: text for name, text in named.items() if text}


def test_public_docstrings_say_something() -> None:
    short = [
        f"{path.relative_to(ROOT)}: {name}: {text!r}"
        for path in FILES
        for name, text in docstrings(path).items()
        if public(name) and len(text.split()) < FEWEST_WORDS
    ]
    assert short == []


WITH_EXAMPLES = [path for path in FILES if any(">>>" in text for text in docstrings(path).values())]


def test_there_are_examples() -> None:
    assert WITH_EXAMPLES


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    done = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert done.attempted > 0
    assert done.failed == 0
