"""`ltc analyse`: numbers on the terminal, JSON, a page that needs nothing else, figures and a trace."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from outcomes import Outcome

from ltc_textgen.analysis import Trace
from ltc_textgen.analysis.page import script

Ltc = Callable[..., Outcome]


@pytest.fixture(scope="module")
def made(run: Path, story: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """What one command printed as JSON, and the folder with its files."""
    import contextlib
    import io

    from ltc_textgen.cli import main

    place = tmp_path_factory.mktemp("analysed")
    files = ["--html", place / "a page.html", "--plot", place / "a.svg", "--save-trace", place / "a.trace"]
    finds = ["--find", "line_position", "--find", r"regex:wild|calm"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main.run(
            [str(one) for one in ["analyse", run, "--text", story, "--tokens", 700, "--json", *files, *finds]]
        )
    return Outcome(code, out.getvalue(), ""), place


def test_the_document_has_every_part(made: tuple[Outcome, Path]) -> None:
    done, _ = made
    assert done.code == 0
    report = json.loads(done.out)
    assert report["tokens"] == 700
    assert set(report["correlation"]) == {"line_position", "regex:wild|calm"}
    assert len(report["half_lives"]["layers"]) == 1
    assert len(report["neurons"]) == 10
    for neuron in report["neurons"]:
        assert re.fullmatch(r"L0N\d+", neuron["name"])
        assert 0 <= neuron["correlation"]["auc"] <= 1
        assert neuron["intervention"]["all"]["tokens"] == 699
        assert len(neuron["highest"]) == len(neuron["lowest"]) == 5
    assert report["memory_curve"]["whole"] == pytest.approx(report["loss"], abs=0.2)
    assert sum(len(row["words"]) for row in report["routing"]) > 4


def test_the_report_is_as_wide_as_a_terminal(run: Path, story: Path, ltc: Ltc) -> None:
    done = ltc("analyse", run, "--text", story, "--tokens", 300, "--find", "regex:wild|calm|home|boat|came")
    assert done.code == 0, done.err
    _, *lines = done.out.splitlines()  # the first holds two paths
    assert "memory curve" in done.out
    assert [line for line in lines if len(line) > 80] == []


def test_the_trace_is_kept(made: tuple[Outcome, Path]) -> None:
    done, place = made
    seen = Trace.load(place / "a.trace")
    assert len(seen) == 700
    assert seen.loss == pytest.approx(json.loads(done.out)["loss"])
    assert (place / "a.svg").stat().st_size > 1000
    assert sorted(path.name for path in place.iterdir()) == ["a page.html", "a.svg", "a.trace"]


class References(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_needs_nothing_else(made: tuple[Outcome, Path]) -> None:
    page = (made[1] / "a page.html").read_text()
    assert len(page) < 3_000_000
    references = References()
    references.feed(page)
    assert references.found == []
    assert not re.search(r"^\s*(import|export) ", script(), re.MULTILINE)
    assert "fetch(" not in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "%DATA%" not in page


def test_a_text_cannot_write_into_the_page(run: Path, tmp_path: Path, ltc: Ltc) -> None:
    text = tmp_path / "evil.txt"
    text.write_text("</script><script>alert(1)</script> <!-- On day 3 the sea was calm.\n" * 20)
    page = tmp_path / "page.html"
    assert ltc("analyse", run, "--text", text, "--tokens", 600, "--find", "line_position", "--html", page).code == 0
    assert page.read_text().count("</script>") == 2


def test_wrong_use_is_one_line(run: Path, story: Path, tmp_path: Path, ltc: Ltc) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    cases = [
        (["--text", story, "--find", "colour"], 2),
        (["--text", story, "--find", "regex:("], 2),
        (["--text", story, "--find", "quotes"], 3),
        (["--text", short], 3),
        (["--text", tmp_path / "missing.txt"], 3),
        ([], 2),
    ]
    for arguments, code in cases:
        done = ltc("analyse", run, "--tokens", 400, *arguments)
        assert done.code == code, arguments
        assert done.err.count("\n") == 1
    assert ltc("analyse", tmp_path, "--text", story).code == 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_the_page_draws_itself_offline(made: tuple[Outcome, Path], tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000"]
    command = ["chromium", *flags, "--dump-dom", (made[1] / "a page.html").as_uri()]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    headings = re.findall(r"<h2>([^<]*)</h2>", drawn)
    assert headings[0] == "Half-lives"
    assert headings[-1] == "Neurons that follow labels best"
    assert drawn.count('<section id="L0N') == 10
    assert drawn.count("data-index=") == 700
