"""One server for all tests of this folder that do not change it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from serving import Serving, save_runs

from ltc_textgen.runs import Run, load_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_runs(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def loaded(runs: dict[str, Path]) -> dict[str, Run]:
    return {name: load_run(path) for name, path in runs.items()}


@pytest.fixture(scope="session")
def server(runs: dict[str, Path]) -> Iterator[Serving]:
    serving = Serving(runs, "--slots", "8", "--max-tokens", "300")
    yield serving
    code, errors = serving.stop()
    assert code == 0, errors
    assert "Traceback" not in errors


@pytest.fixture(scope="session")
def client(server: Serving) -> OpenAI:
    return server.client()
