"""The linear layer on our own product equals PyTorch's."""

import pytest
import torch
from fused_cases import SETS
from torch.nn import functional as F

from ltc_textgen.benchmarking import liquid_layer
from ltc_textgen.kernels import dispatch, library
from ltc_textgen.kernels import matmul as module
from ltc_textgen.kernels.matmul import Linear, linear, product

pytestmark = pytest.mark.skipif(not SETS, reason=f"no CPU kernels here: {library.WHY_NOT}")


@pytest.fixture
def ours(monkeypatch):
    """Our product for every size, wherever the tests run."""
    monkeypatch.setattr(dispatch, "PRODUCT", True)
    monkeypatch.setattr(dispatch, "MIN_PRODUCT", 0)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("M", "K", "N"), [(1, 1, 1), (7, 3, 33), (100, 300, 65), (13, 600, 31), (3, 5, 1100), (300, 2, 9)]
)
def test_product_of_any_size_and_order(name, M, K, N):
    assert library.use_instruction_set(name)
    a, b, bias = torch.randn(M, K), torch.randn(K, N), torch.randn(N)
    expected = a.double() @ b.double()
    for left in (a, a.t().contiguous().t()):
        for right in (b, b.t().contiguous().t()):
            torch.testing.assert_close(product(left, right).double(), expected, rtol=1e-5, atol=1e-4)
            with_bias = product(left, right, bias, sums := torch.empty(M)).double()
            torch.testing.assert_close(sums.double(), a.double().sum(1), rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(with_bias, expected + bias.double(), rtol=1e-5, atol=1e-4)
    library.use_instruction_set(SETS[0])


@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_and_gradients(ours, with_bias):
    x, weight = torch.randn(3, 40, 21), torch.randn(50, 21)
    inputs = [x, weight, torch.randn(50)][: 3 if with_bias else 2]
    results = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        y = function(*leaves)
        results.append([y, *torch.autograd.grad((y * y).sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-3)


def test_same_bits_on_any_number_of_threads():
    a, b, threads = torch.randn(999, 300), torch.randn(300, 70), torch.get_num_threads()
    many = product(a, b)
    torch.set_num_threads(1)
    try:
        assert torch.equal(many, product(a, b))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("coupling", ["diagonal", "full", "cfc"])
def test_cells_mix_their_inputs_with_it(ours, coupling, monkeypatch):
    cell, u, used = liquid_layer(12, coupling=coupling), torch.randn(2, 5, 12), []
    expected = cell.project(u)
    monkeypatch.setattr(module, "_rows", lambda *inputs: used.append(1) or F.linear(*inputs))
    with torch.no_grad():
        torch.testing.assert_close(cell.project(u), expected, rtol=1e-5, atol=1e-5)
    assert used


def test_default_dtype_of_pytorch_does_not_reach_the_product():
    a, b, before = torch.randn(5, 3), torch.randn(3, 4), torch.get_default_dtype()
    expected = product(a, b)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(product(a, b), expected)
    finally:
        torch.set_default_dtype(before)


def test_an_exported_program_takes_any_batch(monkeypatch):
    monkeypatch.setattr(dispatch, "PRODUCT", True)
    monkeypatch.setattr(dispatch, "MIN_PRODUCT", 1000)
    batch = {"input": {0: torch.export.Dim("batch", max=4096)}}
    program = torch.export.export(Linear(16, 16), (torch.randn(2, 16),), dynamic_shapes=batch)
    assert program.module()(torch.randn(999, 16)).shape == (999, 16)


@pytest.mark.slow
def test_registration():
    x, weight, bias = (torch.randn(shape).requires_grad_() for shape in ((4, 3), (5, 3), (5,)))
    torch.library.opcheck(torch.ops.ltc.linear.default, (x, weight, bias))
    torch.library.opcheck(torch.ops.ltc.linear.default, (x.detach(), weight, None))


def test_autocast_and_double_precision_stay_with_pytorch(ours, monkeypatch):
    monkeypatch.setattr(module, "_linear", None)
    monkeypatch.setattr(module, "_forward", None)
    x, weight = torch.randn(4, 3), torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x.double(), weight.double()).dtype == torch.float64
    monkeypatch.setattr(dispatch, "PRODUCT", False)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


def test_module_is_a_linear_layer_with_other_kernels(ours):
    torch.manual_seed(0)
    layer, x = Linear(21, 50), torch.randn(3, 4, 21)
    theirs = torch.nn.Linear(21, 50)
    theirs.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)
