"""JSON objects and recipes of strangers: depth, length, kind of file."""

import os
from pathlib import Path

import pytest

from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.io.checked import DEEPEST, read_json
from ltc_textgen.presets.recipes import assignments, load_file

HOSTILE = [
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"a":' + "9" * 5000 + "}",
    '{"a":' + "[" * 500 + "]" * 500 + "}",
    "[]",
    "",
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_json_that_is_deep_long_or_no_object_is_rejected(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        read_json(path)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(content)
    with pytest.raises(UsageError, match=r"recipe\.json"):
        load_file(recipe)


def test_json_of_ordinary_depth_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a":' + "[" * (DEEPEST - 3) + "]" * (DEEPEST - 3) + "}")
    assert list(read_json(path)) == ["a"]


def test_a_pipe_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("value", ["[" * 50_000, "9" * 5000, "[" * 500 + "]" * 500], ids=["deep", "long", "nested"])
def test_values_that_no_parser_takes(value: str, tmp_path: Path) -> None:
    assert assignments([f"data.data={value}"]) == {"data": {"data": value}}
    path = tmp_path / "recipe.toml"
    path.write_text(f"[data]\ndata = {value}\n")
    with pytest.raises(UsageError, match=r"recipe\.toml"):
        load_file(path)
