"""A row's bits depend neither on the other rows nor on the number of threads."""

from collections.abc import Iterator

import pytest
import torch
from native_models import ids_of, make_model

from ltc_textgen.generation.native import NativeDecoder
from ltc_textgen.kernels import decoder as binding
from ltc_textgen.kernels import library
from ltc_textgen.kernels.decoder_rows import Choice

pytestmark = pytest.mark.skipif(library.LIBRARY is None, reason="no library")

MOST = 256
SIZES = [
    {"hidden_size": 24},
    {"hidden_size": 64, "expansion": 3.0, "solver": "exponential"},
    {"hidden_size": 37, "expansion": 1.6, "conv_width": 3, "solver": "runge_kutta"},
    {"hidden_size": 5, "expansion": 0.2, "num_layers": 1, "solver": "explicit"},
]


@pytest.fixture
def any_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls take as many threads as PyTorch, however small the model."""
    monkeypatch.setattr(binding, "BUSY", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("any_threads")
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_row_has_the_same_bits_in_every_batch_and_on_every_number_of_threads(
    size: dict[str, object], int8: bool
) -> None:
    native = NativeDecoder(make_model(**size), int8=int8)
    ids, uniform = ids_of(MOST, 3), torch.rand(MOST, 5, dtype=torch.float64)
    torch.set_num_threads(1)
    logits, read = native.logits(ids)
    drawn, state = native.draw(ids, None, Choice(1.1), 5, uniform)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        for batch, first in ((1, 0), (1, 200), (2, 3), (3, 7), (7, 100), (64, 190), (MOST, 0)):
            rows = slice(first, first + batch)
            index = torch.arange(first, first + batch)
            ours, after = native.logits(ids[rows])
            assert torch.equal(ours, logits[rows]), (threads, batch)
            assert equal(after, read.select(index)), (threads, batch)
            ours, after = native.draw(ids[rows], None, Choice(1.1), 5, uniform[rows].contiguous())
            assert torch.equal(ours.tokens, drawn.tokens[rows]), (threads, batch)
            assert equal(after, state.select(index)), (threads, batch)


@pytest.mark.usefixtures("any_threads")
def test_one_thread_that_continues_alone_changes_no_bit() -> None:
    native, ids = NativeDecoder(make_model(hidden_size=64)), ids_of(5, 12)
    torch.set_num_threads(1)
    logits, state = native.logits(ids)
    torch.set_num_threads(2)
    for alone in (0, 1, 5, 100):
        native.core._alone = alone
        ours, after = native.logits(ids)
        assert torch.equal(ours, logits)
        assert equal(after, state)


def equal(a: object, b: object) -> bool:
    """Whether two states have the same bits."""
    return all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))
