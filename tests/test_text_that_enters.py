"""Every way in normalises a text alike: calls, options, exported programs and their page; eval names what it spells."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from outcomes import Outcome

from ltc_textgen.data.normalize import normalize
from ltc_textgen.errors import UsageError
from ltc_textgen.export.host.generate import UseError, normalized
from ltc_textgen.io.extras import install_line
from ltc_textgen.runs import load_run

HOST = Path(__file__).parents[1] / "ltc_textgen" / "export" / "host"
ODD = [
    "",
    "one\ntwo",
    "\ufeffone\r\ntwo\rthree\r",
    "\r\r\n\n",
    "a\ufeff\ufeffb",
    "\r\n\r",
    "é\u2028\x85\x0b\t",
    "\ufeff",
]
NO_TEXT = ["a\0", "half \ud800"]


@pytest.mark.parametrize("text", ODD)
def test_the_copy_in_the_exported_program_is_the_original(text: str) -> None:
    assert normalized(text) == normalize(text)


@pytest.mark.parametrize("text", NO_TEXT)
def test_both_reject_what_is_no_text(text: str) -> None:
    with pytest.raises(UsageError):
        normalize(text)
    with pytest.raises(UseError):
        normalized(text)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_copy_in_the_exported_page_is_the_original() -> None:
    source = (HOST / "ltc.js").read_text()
    function = re.search(r"function normalized\(text\) \{\n.*?\n\}", source, re.DOTALL)
    assert function
    program = f"{function.group()}; console.log(JSON.stringify({json.dumps(ODD)}.map(normalized)))"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [normalize(text) for text in ODD]


def test_a_text_read_in_python_is_normalised(run: Path) -> None:
    network = load_run(run).network
    assert torch.equal(network.read("\ufeffthe sea\r\nwas").last, network.read("the sea\nwas").last)
    assert network.read("\ufeffthe sea\r\nwas").tokens == network.read("the sea\nwas").tokens
    with pytest.raises(UsageError, match="NUL"):
        network.read("a\0b")


def test_a_text_to_inspect_is_normalised(run: Path, ltc: Callable[..., Outcome]) -> None:
    odd, plain = (json.loads(ltc("inspect", run, "--json", "--text", text).out) for text in ("the\rsea", "the\nsea"))
    assert odd == plain


def test_eval_names_special_tokens_that_a_text_spells(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    text = tmp_path / "chat.txt"
    text.write_text("On day 1 <|endoftext|> the sea was calm. <|im_start|>\n")
    result = ltc("eval", run, "--data", text)
    assert result.code == 0, result.err
    assert all(token in result.err for token in ("<|endoftext|>", "<|im_start|>"))
    text.write_text("On day 1 the sea was calm.\n")
    assert "special" not in ltc("eval", run, "--data", text).err


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_a_limit_is_a_number(run: Path, tmp_path: Path, ltc: Callable[..., Outcome], value: str) -> None:
    assert ltc("export", run, "--out", tmp_path / "out", "--int8", "--int8-limit", value).code == 2


def test_an_extra_is_installed_from_where_the_package_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    assert f"{root}[plot]" in install_line("plot")
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    assert install_line("plot") == "pip install 'ltc-textgen[plot]'"
