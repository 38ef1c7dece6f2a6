"""Small networks of every coupling, over the characters of a text."""

import pytest
import torch
from analysis_networks import COUPLINGS, network

from ltc_textgen.model.network import LiquidNetwork


@pytest.fixture(params=list(COUPLINGS))
def every(request: pytest.FixtureRequest) -> LiquidNetwork:
    """A network of each coupling and block."""
    return network(request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(11, (1, 30), generator=torch.Generator().manual_seed(1))
