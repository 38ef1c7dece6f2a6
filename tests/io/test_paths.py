"""Paths as users write them."""

from pathlib import Path

import pytest

from ltc_textgen.errors import UsageError
from ltc_textgen.io.paths import user_path


def test_home_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_path("~/a") == Path("/somewhere/a")
    assert user_path("a~/b") == Path("a~/b")


def test_a_user_who_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="nobody-of-this-name") as caught:
        user_path("~nobody-of-this-name/a")
    assert "HOME" not in str(caught.value)
