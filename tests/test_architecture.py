"""The tree is the architecture: imports point one way, files and functions stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ltc_textgen"

# From the bottom up. A module may import from its own line and from lines above it.
ORDER = [
    {"shapes", "errors", "settings", "config", "adaptation"},
    {"solvers", "devices", "process", "files", "modes"},
    {"cells", "kernels"},
    {
        "fingerprints",
        "state",
        "states",
        "head",
        "blocks",
        "network",
        "model",
        "huggingface",
        "criteria",
        "writer",
        "model_card",
        "sharing",
    },
    {"data", "reading"},
    {"artifacts"},
    {"generation", "evaluation"},
    {"export"},
    {"training", "recipes", "sizing", "presets", "benchmarking"},
    {"commands"},
    {"cli", "__main__", "__init__", "registration", "modeling_ltc"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

FILES = sorted(PACKAGE.rglob("*.py"))


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltc_textgen"):
            inner = (node.module or "").split(".")[1:]
            names |= {inner[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ltc_textgen.")}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    upward = {name for name in imported(ast.parse(path.read_text())) if RANK[name] > RANK[top(path)]}
    assert not upward, f"{path.name} imports from above itself"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            lines = (node.end_lineno or 0) - node.lineno - docstring.count("\n")
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_no_file_names_a_machine() -> None:
    root = PACKAGE.parent
    places = [*root.glob("*.*"), *root.glob("docs/*"), *root.glob("benchmarks/*"), *FILES, *root.glob("tests/**/*.py")]
    for path in places:
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".cpp", ".h"}:
            text = path.read_text()
            assert "/ro" + "ot/" not in text, path
            assert "/wo" + "rk/" not in text, path
