"""Wirings draw the very synapses that ncps draws."""

import ncps.wirings
import numpy as np
import pytest

from ltc_textgen.config import WiringConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.layers.wirings import Wiring, auto_ncp, build_wiring, fully_connected, ncp, random


def assert_same(ours: Wiring, theirs: ncps.wirings.Wiring, input_size: int) -> None:
    theirs.build(input_size)
    np.testing.assert_array_equal(ours.adjacency, theirs.adjacency_matrix)
    np.testing.assert_array_equal(ours.sensory, theirs.sensory_adjacency_matrix)
    assert ours.output_size == theirs.output_dim
    layers = [theirs.get_neurons_of_layer(i) for i in range(theirs.num_layers)]
    assert [list(layer) for layer in ours.layers] == layers
    assert ours.synapse_count == theirs.synapse_count
    assert ours.sensory_synapse_count == theirs.sensory_synapse_count


@pytest.mark.parametrize("seed", [0, 1111, 2**32 - 1])
@pytest.mark.parametrize(("units", "inputs", "outputs"), [(1, 1, None), (7, 5, 3), (20, 33, None)])
class TestLikeNcps:
    @pytest.mark.parametrize("self_connections", [True, False])
    def test_fully_connected(self, units, inputs, outputs, seed, self_connections):
        ours = fully_connected(units, inputs, outputs, seed, self_connections)
        assert_same(ours, ncps.wirings.FullyConnected(units, outputs, seed, self_connections), inputs)

    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
    def test_random(self, units, inputs, outputs, seed, sparsity):
        ours = random(units, inputs, outputs, sparsity, seed)
        assert_same(ours, ncps.wirings.Random(units, outputs, sparsity, seed), inputs)


@pytest.mark.parametrize("seed", [0, 22222, 2**32 - 1])
@pytest.mark.parametrize("inputs", [1, 4, 40])
class TestNcpLikeNcps:
    # The second leaves inter and command neurons out in every draw, so that they are connected afterwards.
    @pytest.mark.parametrize("sizes", [(10, 10, 8, 6, 6, 4, 6), (30, 12, 3, 1, 1, 0, 1), (1, 1, 1, 1, 1, 9, 1)])
    def test_ncp(self, sizes, inputs, seed):
        assert_same(ncp(inputs, *sizes, seed=seed), ncps.wirings.NCP(*sizes, seed=seed), inputs)

    @pytest.mark.parametrize(("units", "outputs"), [(8, 2), (32, 8), (19, 16)])
    @pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
    def test_auto_ncp(self, units, outputs, sparsity, inputs, seed):
        ours = auto_ncp(units, inputs, outputs, sparsity, seed)
        assert_same(ours, ncps.wirings.AutoNCP(units, outputs, sparsity, seed), inputs)


def test_ncp_flows_from_inputs_to_motor_neurons():
    wiring = auto_ncp(40, 12, 10, 0.5)
    inter, command, motor = (list(layer) for layer in wiring.layers)
    exists = wiring.adjacency != 0
    assert motor == list(range(10))
    assert (wiring.sensory[:, inter] != 0).any(0).all(), "every inter neuron has an input"
    assert not wiring.sensory[:, command + motor].any()
    assert exists[np.ix_(inter, command)].any(0).all()
    assert exists[np.ix_(command, motor)].any(1).all(), "every command neuron has an output"
    assert not exists[np.ix_(inter, inter)].any()
    assert not exists[motor].any()
    assert not exists[np.ix_(inter, motor)].any()


class TestFromSettings:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            (None, fully_connected(20, 6, None, 22222)),
            (WiringConfig(self_connections=False, output_size=5, seed=3), fully_connected(20, 6, 5, 3, False)),
            (WiringConfig(kind="random", sparsity=0.25, output_size=4), random(20, 6, 4, 0.25, 22222)),
            (WiringConfig(kind="auto_ncp", sparsity=0.7, output_size=4, seed=8), auto_ncp(20, 6, 4, 0.7, 8)),
            (
                WiringConfig(
                    kind="ncp",
                    output_size=3,
                    inter_neurons=12,
                    command_neurons=5,
                    sensory_fanout=7,
                    inter_fanout=2,
                    recurrent_command_synapses=0,
                    motor_fanin=4,
                ),
                ncp(6, 12, 5, 3, 7, 2, 0, 4),
            ),
        ],
    )
    def test_every_field_counts(self, settings, expected):
        ours = build_wiring(settings, 6, 20)
        np.testing.assert_array_equal(ours.adjacency, expected.adjacency)
        np.testing.assert_array_equal(ours.sensory, expected.sensory)
        assert (ours.layers, ours.output_size) == (expected.layers, expected.output_size)

    def test_sizes_that_do_not_add_up(self):
        sizes = {"inter_neurons": 12, "command_neurons": 5, "sensory_fanout": 7, "inter_fanout": 2}
        settings = WiringConfig(kind="ncp", output_size=3, recurrent_command_synapses=0, motor_fanin=4, **sizes)
        with pytest.raises(UsageError, match=r"21 .*12 \+ 5 \+ 3"):
            build_wiring(settings, 6, 21)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: random(4, 3, sparsity=1.0), "sparsity"),
        (lambda: fully_connected(4, 3, 5), "4 .*5"),
        (lambda: auto_ncp(8, 3, 6), "output_size < neurons - 2, got 6 and 8"),
        (lambda: auto_ncp(8, 3, 2, 0.05), "sparsity in .0.1, 1., got 0.05"),
        (lambda: ncp(3, 4, 5, 2, 9, 1, 1, 1), "sensory_fanout .*9.*4"),
        (lambda: ncp(3, 4, 5, 2, 1, 9, 1, 1), "inter_fanout .*9.*5"),
        (lambda: ncp(3, 4, 5, 2, 1, 1, 1, 9), "motor_fanin .*9.*5"),
    ],
)
def test_impossible_wirings_are_rejected(build, message):
    with pytest.raises(UsageError, match=message):
        build()
