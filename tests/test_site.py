"""The documentation site builds without a network and without a broken link; the notebook runs."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "watch_the_time_constants.ipynb"


class Loaded(HTMLParser):
    """What a page loads when it opens."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"script": "src", "link": "href", "img": "src"}.get(tag)
        values = dict(attrs)
        if wanted and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get(wanted) or "")


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    closed = os.environ | {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=closed)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = sorted((tmp_path / "site").rglob("*.html"))
    written = {path.stem for path in (ROOT / "docs").rglob("*.md")}
    assert written <= {page.stem for page in pages}
    for page in pages:
        parser = Loaded()
        parser.feed(page.read_text())
        assert [address for address in parser.found if re.match(r"(https?:)?//", address)] == [], page.name
    reference = (tmp_path / "site" / "reference" / "analysis.html").read_text()
    assert "ltc_textgen.analysis.find.find" in reference


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
