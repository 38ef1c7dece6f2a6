from collections.abc import Iterator

import jaxtyping
import pytest
from cell_kinds import CLOSED_KINDS, MEMBRANE_KINDS


@pytest.fixture(params=[*MEMBRANE_KINDS, *CLOSED_KINDS])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=MEMBRANE_KINDS)
def membrane_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """The run-time check of annotations would speak before the message that a user gets to see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
