"""A directory is there whole or not at all."""

import os
from pathlib import Path

import pytest

from ltc_textgen.errors import LTCError, UsageError
from ltc_textgen.io.atomic import new_directory


def make(out: Path, overwrite: bool = False, content: str = "new") -> None:
    with new_directory(out, "marker", overwrite) as directory:
        (directory / "marker").write_text(content)
        assert not (out / "marker").is_file() or (out / "marker").read_text() != content


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    def fail(error: type[BaseException]) -> None:
        with new_directory(tmp_path / "a" / "b" / "out", "marker", False) as directory:
            (directory / "half").write_text("x")
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert list(tmp_path.iterdir()) == []


def test_only_an_empty_or_a_like_directory_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(out)
    with pytest.raises(UsageError, match="--overwrite"):
        make(out)
    make(out, overwrite=True, content="newer")
    assert (out / "marker").read_text() == "newer"
    (out / "marker").rename(out / "mine")
    with pytest.raises(UsageError, match=f"--out {out}:"):
        make(out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine"]
    with pytest.raises(UsageError, match=f"--out {out / 'mine'}:"):
        make(out / "mine", overwrite=True)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LTCError, match=str(tmp_path / "file")):
        make(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "x"


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".out[1].999999999.tmp", tmp_path / f".out[1].{os.getppid()}.tmp"
    dead.mkdir()
    alive.mkdir()
    make(tmp_path / "out[1]")
    assert not dead.exists()
    assert alive.exists()
