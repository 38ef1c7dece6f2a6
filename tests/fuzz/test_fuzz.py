"""Mutated files of every format end as documented, and what does not is noticed. `make fuzz` tries more of them."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

RUNNER = Path(__file__).with_name("run.py")


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_runner", RUNNER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_runner"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mutated_files_end_as_documented(tmp_path: Path) -> None:
    command = [sys.executable, str(RUNNER), "--inputs", "280", "--seed", "1", "--keep", str(tmp_path / "faults")]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def internal(*_: object) -> int:
    print("ltc: internal error: IndexError", file=sys.stderr)
    return 1


def raising(*_: object) -> int:
    raise RecursionError("too deep")


def memory(*_: object) -> int:
    return len(bytearray(3 * 2**29)) and 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", [internal, raising, memory, lambda *_: 5, lambda *_: None, lambda *_: 139])
def test_a_fault_is_noticed(fault: object, runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MEMORY", 2**26)
    monkeypatch.setitem(runner.NEEDS, "x", ())
    monkeypatch.setitem(runner.TARGETS, "x", fault)
    assert runner.attempt("x", 0, 0, tmp_path, tmp_path / "input")
    monkeypatch.setitem(runner.TARGETS, "x", lambda *_: 4)
    assert runner.attempt("x", 0, 0, tmp_path, tmp_path / "input") is None


def test_an_input_depends_only_on_seed_format_and_number(runner: ModuleType, tmp_path: Path) -> None:
    import random

    mutators = sys.modules["mutators"]
    document = b'{"a": [1, 2.5, {"b": "text", "c": null}], "d": true, "e": {"f": -3}}'
    made = [[mutators.mutate_json_bytes(random.Random(f"json 0 {n}"), document) for n in range(300)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 200
