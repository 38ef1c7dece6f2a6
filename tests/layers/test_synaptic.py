"""The synaptic cell: masks, memory, and the constants it starts from."""

import pytest
import torch
from torch.testing import assert_close

from ltc_textgen.errors import UsageError
from ltc_textgen.kernels import reference
from ltc_textgen.kernels.reference import synaptic_sums
from ltc_textgen.layers import SynapticLTC
from ltc_textgen.layers.synaptic import REVERSAL, inverse_softplus
from ltc_textgen.layers.wirings import auto_ncp, fully_connected


def cell_and_text(**settings):
    torch.manual_seed(0)
    cell = SynapticLTC(5, 12, wiring=auto_ncp(12, 5, 3), **settings).double()
    return cell, torch.randn(4, 6, 5, dtype=torch.float64)


def test_one_synapse_by_hand():
    """One neuron, one input, one sub-step: the fused step of ncps, term by term."""
    cell = SynapticLTC(1, 1, wiring=fully_connected(1, 1), steps=1, step_size=0.5).double()
    with torch.no_grad():
        for group, (w, sigma, mu, reversal) in (
            (cell.recurrent, (0.6, 2.0, 0.1, -1.0)),
            (cell.sensory, (0.3, 1.5, -0.4, 1.0)),
        ):
            group.raw_weight.fill_(w).copy_(inverse_softplus(group.raw_weight))
            group.sigma.fill_(sigma)
            group.mu.fill_(mu)
            group.reversal.fill_(reversal)
        for parameter, value in ((cell.raw_capacitance, 0.7), (cell.raw_leak, 0.2)):
            parameter.fill_(value).copy_(inverse_softplus(parameter))
        cell.rest.fill_(0.05)
        for parameter, value in (
            (cell.input_scale, 2.0),
            (cell.input_shift, 0.3),
            (cell.output_scale, 3.0),
            (cell.output_shift, -0.2),
        ):
            parameter.fill_(value)
    x, u = 0.25, 0.8
    recurrent = 0.6 / (1 + torch.tensor(-2.0 * (x - 0.1), dtype=torch.float64).exp())
    sensory = 0.3 / (1 + torch.tensor(-1.5 * (2 * u + 0.3 + 0.4), dtype=torch.float64).exp())
    c = 0.7 / 0.5
    after = (c * x + 0.2 * 0.05 - recurrent + sensory) / (c + 0.2 + recurrent + sensory)
    y, last = cell(torch.full((1, 1, 1), u, dtype=torch.float64), torch.full((1, 1), x, dtype=torch.float64))
    assert_close(last.squeeze(), after)
    assert_close(y.squeeze(), 3 * after - 0.2)


def test_synapses_outside_the_mask_do_nothing_and_learn_nothing():
    cell, u = cell_and_text()
    before, _ = cell(u)
    before.sum().backward()
    for group in (cell.recurrent, cell.sensory):
        assert group.mask.any()
        assert not group.mask.all()
        for parameter in (group.raw_weight, group.sigma, group.mu, group.reversal):
            assert parameter.grad is not None
            assert not parameter.grad[~group.mask].any()
            assert parameter.grad[group.mask].any()
            with torch.no_grad():
                parameter[~group.mask] = 7.0
    assert_close(cell(u)[0], before, rtol=0, atol=0)


def test_masks_are_saved_as_bool_and_are_no_parameters():
    cell, u = cell_and_text()
    saved = cell.state_dict()
    masks = {name for name, tensor in saved.items() if tensor.dtype == torch.bool}
    assert masks == {"recurrent.mask", "sensory.mask"}
    assert not masks & {name for name, _ in cell.named_parameters()}
    other = SynapticLTC(5, 12, wiring=auto_ncp(12, 5, 3, seed=9)).double()
    assert not other.recurrent.mask.equal(cell.recurrent.mask)
    other.load_state_dict(saved)
    assert_close(other(u), cell(u), rtol=0, atol=0)


def test_reversal_potentials_start_with_the_polarities_of_the_wiring():
    cell, _ = cell_and_text()
    assert cell.recurrent.reversal.detach().equal(REVERSAL * torch.from_numpy(cell.wiring.adjacency).double())
    assert cell.sensory.reversal.detach().equal(REVERSAL * torch.from_numpy(cell.wiring.sensory).double())


def test_conductances_start_in_the_ranges_of_the_authors():
    cell = SynapticLTC(8, 8)
    for group in (cell.recurrent, cell.sensory):
        w = group.synapses.w
        assert 0.001 <= w.min() < 0.1
        assert 0.9 < w.max() <= 1.0
    assert 0.4 <= cell.capacitance.min() <= cell.capacitance.max() <= 0.6
    assert 0.001 <= cell.leak.conductance.min() <= cell.leak.conductance.max() <= 1.0
    wide = SynapticLTC(56, 8).sensory.synapses.w
    assert wide.max() <= 16 / 64


@pytest.mark.parametrize("chunk", [1, 60, 100, 10**9])
@pytest.mark.parametrize("kept", [0, 10**9])
def test_chunks_and_recomputation_change_no_number(monkeypatch, chunk, kept):
    def run():
        cell, u = cell_and_text()
        y, last = cell(u.requires_grad_(), elapsed=torch.tensor([0.5, 1.0, 0.0, 2.0]))
        (y.square().sum() + last.sum()).backward()
        return [y, last, u.grad, *(p.grad for p in cell.parameters())]

    expected = run()
    monkeypatch.setattr(reference, "CHUNK", chunk)
    monkeypatch.setattr(reference, "KEPT", kept)
    assert_close(run(), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("gradients", [True, False])
def test_no_more_sigmoids_than_a_chunk_exist_at_once(monkeypatch, gradients):
    largest, whole = [], reference._sums
    monkeypatch.setattr(reference, "CHUNK", 600)
    monkeypatch.setattr(reference, "KEPT", 0)
    monkeypatch.setattr(reference, "_sums", lambda x, *t: largest.append(x.shape[0] * t[0].numel()) or whole(x, *t))
    cell, u = cell_and_text()
    with torch.set_grad_enabled(gradients):
        cell(u)
    assert 300 < max(largest) <= 600


def test_backward_pass_keeps_states_and_not_sigmoids(monkeypatch):
    """For T tokens of K sub-steps: O(T K B N) numbers, where plain autograd keeps O(T K B N^2)."""
    monkeypatch.setattr(reference, "KEPT", 0)
    batch, tokens, neurons, steps = 8, 6, 64, 3
    cell = SynapticLTC(neurons, neurons, steps=steps)
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().size() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = cell(torch.randn(batch, tokens, neurons))
    tables = 20 * neurons * neurons
    assert sum(kept.values()) < tables + 20 * tokens * steps * batch * neurons < tokens * steps * batch * neurons**2 / 2
    assert y.requires_grad


def test_sums_need_no_gradient_to_be_right():
    cell, _ = cell_and_text()
    x = torch.randn(3, 12, dtype=torch.float64)
    w, sigma, mu, reversal, mask = cell.recurrent.synapses
    open_ = torch.zeros(3, 12, 12, dtype=torch.float64)
    for j in range(12):
        for i in range(12):
            if mask[j, i]:
                open_[:, j, i] = w[j, i] * torch.sigmoid(sigma[j, i] * (x[:, j] - mu[j, i]))
    conductance, current = synaptic_sums(x, cell.recurrent.synapses)
    assert_close(conductance, open_.sum(1))
    assert_close(current, (open_ * reversal).sum(1))


def test_readout_is_the_motor_neurons():
    cell, u = cell_and_text()
    with torch.no_grad():
        cell.output_scale.copy_(torch.tensor([2.0, 3.0, 4.0]))
        cell.output_shift.copy_(torch.tensor([0.1, 0.2, 0.3]))
    y, last = cell(u)
    assert y.shape == (4, 6, 3)
    assert last.shape == (4, 12)
    assert_close(y[:, -1], last[:, :3] * cell.output_scale + cell.output_shift)


def test_wiring_of_other_sizes_is_rejected():
    with pytest.raises(UsageError, match=r"expected 5 inputs and 11 neurons, got \(5, 12\)"):
        SynapticLTC(5, 11, wiring=auto_ncp(12, 5, 3))
