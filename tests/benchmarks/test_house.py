"""The script that counts the tree, and the README that lists the scripts."""

from graphlib import CycleError
from pathlib import Path

import pytest

import house

BENCHMARKS = Path(house.__file__).parent


def package(root: Path, **modules: str) -> Path:
    folder = root / house.PACKAGE
    folder.mkdir()
    (root / "tests").mkdir()
    (root / "tests" / "test_one.py").write_text("def test_a():\n    pass\n\n\ndef helper():\n    pass\n")
    for name, text in {"__init__": "from ltc_textgen.top import a\n", **modules}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_floors_follow_the_longest_chain_of_imports(tmp_path: Path) -> None:
    made = package(
        tmp_path,
        low="x = 1\n",
        aside="",
        middle="import ltc_textgen.low\n",
        top="def f():\n    from ltc_textgen import low\n    from ltc_textgen.middle import y  # type: ignore\n",
    )
    assert house.floors(house.import_graph(made)) == [["aside", "low"], ["middle"], ["top"]]
    counted = house.count(tmp_path, cases=False)
    assert counted["floors of imports"] == 3
    assert counted["files of package Python"] == counted["modules at the top"] == 5
    assert counted["lines of package Python"] == 6
    assert counted["type: ignore in the package"] == 1
    assert counted["test functions"] == 1


def test_a_circle_has_no_floors(tmp_path: Path) -> None:
    made = package(tmp_path, a="import ltc_textgen.b\n", b="import ltc_textgen.a\n")
    with pytest.raises(CycleError):
        house.floors(house.import_graph(made))


def test_the_readme_lists_every_script_and_nothing_else() -> None:
    listed = (BENCHMARKS / "README.md").read_text()
    names = [f"`{path.name}`" for path in BENCHMARKS.rglob("*.py") if path.stem != "__init__"]
    assert [name for name in names if name not in listed] == []
    scripts = {line.split("`")[1] for line in listed.splitlines() if line.startswith("| `")}
    assert scripts <= {name.strip("`") for name in names}
