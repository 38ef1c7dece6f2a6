"""Shared fixtures. The environment is set before any Hugging Face library is imported: no test reaches a network."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from hub import Hub, dead_endpoint
from jaxtyping import install_import_hook
from outcomes import STORY, TINY, Outcome

PACKAGE = Path(__file__).parents[1] / "ltc_textgen"
UNCHECKED = {"__init__", "__main__", "cli"}
"""typer reads the signatures of the command line, which hold no shapes; every other module is checked at run time."""

install_import_hook(
    [
        f"ltc_textgen.{path.stem}"
        for path in PACKAGE.iterdir()
        if path.stem not in UNCHECKED and (path.is_dir() or path.suffix == ".py") and path.name[0] != "_"
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # PEP 484: an int is a float
)

hypothesis.settings.register_profile("ltc", deadline=None)  # a loaded machine is no fault of the code
hypothesis.settings.load_profile("ltc")

_HOME = Path(tempfile.mkdtemp(prefix="ltc-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ |= {
    "HF_HOME": str(_HOME / "huggingface"),
    "LTC_CACHE": str(_HOME / "ltc"),
    "HF_ENDPOINT": dead_endpoint(),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    # Test processes run in parallel; OpenMP threads that spin while waiting would block the other processes.
    "OMP_WAIT_POLICY": "passive",
    # One thread in the runs of tests: with a choice of several (`training.threads`), the bits depend on the load.
    "OMP_NUM_THREADS": "1",
}
for _key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN"):
    os.environ.pop(_key, None)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty token cache."""
    monkeypatch.setenv("LTC_CACHE", str(tmp_path / "ltc-cache"))
    return tmp_path / "ltc-cache"


def use_hub(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process and its children to the hub at `url`, with the caches in `home`."""
    import datasets
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HUGGINGFACE_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(home / "modules"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_cache: Path) -> Iterator[Hub]:
    """A local hub with WikiText-2 and BERT; this process uses it, with empty caches."""
    with Hub() as running:
        running.add_wikitext()
        running.add_bert()
        use_hub(running.url, tmp_path / "huggingface", monkeypatch)
        yield running


@pytest.fixture
def ltc(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        from ltc_textgen.cli import main

        capsys.readouterr()
        code = main.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text with space") / "story é.txt"
    path.write_text(STORY)
    return path


@pytest.fixture(scope="session")
def trained_story(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, made once for all tests; none may change it."""
    from ltc_textgen.cli import main

    out = tmp_path_factory.mktemp("runs") / "story"
    assert main.run(["train", "--data", str(story), "--max-steps", "150", "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture(scope="module")
def run(trained_story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run for the tests of one file."""
    return shutil.copytree(trained_story, tmp_path_factory.mktemp("runs") / "story")
