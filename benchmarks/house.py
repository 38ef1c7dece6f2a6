"""Size and structure of a checkout: lines, files, floors of imports and tests.

    python benchmarks/house.py                       this checkout
    python benchmarks/house.py --root FOLDER         another one, such as a worktree of an older commit
    python benchmarks/house.py --cases               also the number of test cases, as pytest collects them

A room is a folder or module at the top of the package; the floors are the longest chain of rooms that import each
other. Prints a table; the last line of stdout is one JSON document.
"""

import argparse
import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = "ltc_textgen"


def room(path: Path, package: Path) -> str:
    """The folder or module at the top of the package that contains a file."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """The rooms that a module imports, inside functions and for annotations included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            inner = (node.module or "").split(".")[1:]
            names |= {inner[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return names


def import_graph(package: Path) -> dict[str, set[str]]:
    """Room -> the rooms that it imports. The package's `__init__`, which imports every public name, is left out."""
    rooms: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        if path.parent != package or path.stem != "__init__":
            found = imported(ast.parse(path.read_text())) - {room(path, package), "__version__"}
            rooms.setdefault(room(path, package), set()).update(found)
    return rooms


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by floor, from those that import no other room up to the command line.

    Raises:
        graphlib.CycleError: Rooms import each other.
    """
    level: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        level[name] = 1 + max((level[below] for below in graph.get(name, ())), default=-1)
    return [sorted(name for name in level if level[name] == floor) for floor in range(max(level.values()) + 1)]


def count(root: Path, cases: bool) -> dict[str, int]:
    """The figures of the table."""
    package = root / PACKAGE
    files = sorted(package.rglob("*.py"))
    texts = [path.read_text() for path in files]
    tests = [ast.parse(path.read_text()) for path in sorted((root / "tests").rglob("*.py"))]
    functions = [n for tree in tests for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    figures = {
        "lines of package Python": sum(text.count("\n") for text in texts),
        "files of package Python": len(files),
        "modules at the top": sum(path.parent == package for path in files),
        "floors of imports": len(floors(import_graph(package))),
        "type: ignore in the package": sum(text.count("type: ignore") for text in texts),
        "test functions": sum(node.name.startswith("test_") for node in functions),
    }
    if cases:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-n", "0", "-p", "no:cacheprovider"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        figures["test cases"] = sum("::" in line for line in done.stdout.splitlines())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="checkout to count")
    parser.add_argument("--cases", action="store_true", help="also collect the test cases (half a minute)")
    options = parser.parse_args()
    figures = count(options.root.resolve(), options.cases)
    for name, value in figures.items():
        print(f"{name:<32}{value:>8,}")
    for number, names in reversed(list(enumerate(floors(import_graph(options.root / PACKAGE))))):
        print(f"floor {number:>2}: {' '.join(names)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
