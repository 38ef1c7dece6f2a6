"""Importing the package registers the network, in whatever order, and loads nothing heavy."""

import subprocess
import sys

import pytest

REGISTERED = """
assert AutoConfig.for_model("ltc", input_size=5, hidden_size=4).hidden_size == 4
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("ltc", input_size=5, hidden_size=4))
assert type(model).__name__ == "LiquidTimeConstantNetwork"
"""
AUTO = "from transformers import AutoConfig, AutoModelForCausalLM"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("imports", [["import ltc_textgen", AUTO], [AUTO, "import ltc_textgen"]], ids=["first", "last"])
@pytest.mark.slow
def test_importing_the_package_registers_the_network(imports: list[str]) -> None:
    run("\n".join([*imports, REGISTERED]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    run("import sys, ltc_textgen; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)")
