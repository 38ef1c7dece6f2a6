"""Wirings: which synapses exist between inputs and neurons, and whether they excite or inhibit.

| wiring            | synapses                                                                              |
|-------------------|---------------------------------------------------------------------------------------|
| `fully_connected` | all                                                                                   |
| `random`          | a fraction of all, drawn uniformly                                                    |
| `ncp`             | inputs -> inter -> command (recurrent) -> motor neurons, as in a nematode's circuits  |
| `auto_ncp`        | `ncp` with its six sizes derived from a number of neurons, of outputs, and a sparsity |

Neurons are numbered motor first, then command, then inter neurons, so that the outputs of a layer are its first
`output_size` neurons.

The same seed draws the same synapses as in `ncps` 1.0.1, so that its networks can be rebuilt from their settings:
random numbers are consumed in its order, even where one is thrown away.

Source:
    Lechner et al. 2020, Nature Machine Intelligence 2, 642-652 (neural circuit policies).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltc_textgen.config import WiringConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.shapes import Int

POLARITIES = [-1, 1, 1]
"""Two in three synapses excite (fully_connected, random)."""

NCP_POLARITIES = [-1, 1]
"""One in two synapses excites (ncp, auto_ncp)."""


@dataclass(frozen=True)
class Wiring:
    """Synapses of a layer.

    Args:
        adjacency: Polarity of the synapse from neuron j onto neuron i at [j, i]: +1, -1, or 0 where there is none.
        sensory: The same from input d onto neuron i at [d, i].
        layers: Neurons in the order in which a token passes them, one range of ids per layer. The last holds the motor
            neurons, if the wiring distinguishes them.
        output_size: Number of motor neurons, whose states leave the layer; they come first.
    """

    adjacency: Int[np.ndarray, "N N"]
    sensory: Int[np.ndarray, "D N"]
    layers: tuple[range, ...]
    output_size: int

    @property
    def units(self) -> int:
        """Number of neurons, N."""
        return self.adjacency.shape[0]

    @property
    def input_size(self) -> int:
        """Number of input features, D."""
        return self.sensory.shape[0]

    @property
    def synapse_count(self) -> int:
        """Number of synapses between neurons."""
        return int(np.count_nonzero(self.adjacency))

    @property
    def sensory_synapse_count(self) -> int:
        """Synapses from inputs onto neurons."""
        return int(np.count_nonzero(self.sensory))


def fully_connected(
    units: int, input_size: int, output_size: int | None = None, seed: int = 1111, self_connections: bool = True
) -> Wiring:
    """Every synapse exists; the seed draws polarities.

    Args:
        units: N, neurons.
        input_size: D, inputs.
        output_size: Motor neurons; all neurons if None.
        seed: Seed of the polarities.
        self_connections: Whether a neuron has a synapse onto itself.
    """
    draw = np.random.default_rng(seed)
    exists = np.ones((units, units), dtype=bool) if self_connections else ~np.eye(units, dtype=bool)
    adjacency = np.zeros((units, units), dtype=np.int8)
    adjacency[exists] = draw.choice(POLARITIES, size=np.count_nonzero(exists))
    sensory = draw.choice(POLARITIES, size=(input_size, units)).astype(np.int8)
    return Wiring(adjacency, sensory, (range(units),), _outputs(units, output_size))


def random(
    units: int, input_size: int, output_size: int | None = None, sparsity: float = 0.0, seed: int = 1111
) -> Wiring:
    """A random fraction of all synapses, drawn without replacement.

    Args:
        units: N, neurons.
        input_size: D, inputs.
        output_size: Motor neurons; all neurons if None.
        sparsity: Fraction of synapses left out, in [0, 1).
        seed: Seed of synapses and polarities.

    Raises:
        UsageError: If the sparsity is out of range.
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"wiring: sparsity must lie in [0, 1), got {sparsity}")
    draw = np.random.default_rng(seed)

    def drawn(sources: int, draws_per_synapse: int) -> Int[np.ndarray, "sources N"]:
        matrix = np.zeros(sources * units, dtype=np.int8)
        count = round(sources * units * (1 - sparsity))
        chosen = draw.choice(sources * units, size=count, replace=False)
        matrix[chosen] = draw.choice(POLARITIES, size=(count, draws_per_synapse))[:, -1]
        return matrix.reshape(sources, units)

    # ncps draws the polarity of a sensory synapse twice and keeps the second.
    adjacency, sensory = drawn(units, 1), drawn(input_size, 2)
    return Wiring(adjacency, sensory, (range(units),), _outputs(units, output_size))


def ncp(
    input_size: int,
    inter_neurons: int,
    command_neurons: int,
    motor_neurons: int,
    sensory_fanout: int,
    inter_fanout: int,
    recurrent_command_synapses: int,
    motor_fanin: int,
    seed: int = 22222,
) -> Wiring:
    """Neural circuit policy: inputs -> inter neurons -> command neurons (recurrent) -> motor neurons.

    Args:
        input_size: D, inputs.
        inter_neurons: Inter neurons.
        command_neurons: Command neurons.
        motor_neurons: Motor neurons, the outputs of the layer.
        sensory_fanout: Inter neurons that each input reaches.
        inter_fanout: Command neurons that each inter neuron reaches.
        recurrent_command_synapses: Draws of a synapse among command neurons; the same may be drawn twice.
        motor_fanin: Command neurons that reach each motor neuron.
        seed: Seed of synapses and polarities.

    Raises:
        UsageError: If a fan exceeds the neurons it fans over.
    """
    for name, fan, kind, available in (
        ("sensory_fanout", sensory_fanout, "inter", inter_neurons),
        ("inter_fanout", inter_fanout, "command", command_neurons),
        ("motor_fanin", motor_fanin, "command", command_neurons),
    ):
        if fan > available:
            raise UsageError(f"wiring: {name} is {fan} but there are only {available} {kind} neurons")
    motor = range(motor_neurons)
    command = range(motor_neurons, motor_neurons + command_neurons)
    inter = range(command.stop, command.stop + inter_neurons)
    circuit = _Circuit(input_size, inter.stop, seed)
    circuit.fan_out(circuit.sensory, range(input_size), inter, sensory_fanout)
    circuit.fan_out(circuit.adjacency, inter, command, inter_fanout)
    circuit.scatter(command, recurrent_command_synapses)
    # Seen from the motor neurons: each chooses its sources, and a command neuron that none chose is connected too.
    circuit.fan_out(circuit.adjacency.T, motor, command, motor_fanin)
    return Wiring(circuit.adjacency, circuit.sensory, (inter, command, motor), motor_neurons)


def auto_ncp(units: int, input_size: int, output_size: int, sparsity: float = 0.5, seed: int = 22222) -> Wiring:
    """`ncp` with sizes derived from three numbers: 40 % of the neurons that are not motor neurons command.

    Args:
        units: N, neurons in all.
        input_size: D, inputs.
        output_size: Motor neurons, fewer than units - 2; 0.3 units is a good choice.
        sparsity: Fraction of the synapses that a fan leaves out, in [0.1, 1).
        seed: Seed of synapses and polarities.

    Raises:
        UsageError: If there are too few neurons for the outputs, or the sparsity is out of range.
    """
    if output_size >= units - 2:
        raise UsageError(f"wiring: auto_ncp needs output_size < neurons - 2, got {output_size} and {units} neurons")
    if not 0.1 <= sparsity < 1:
        raise UsageError(f"wiring: auto_ncp needs a sparsity in [0.1, 1), got {sparsity}")
    density = 1 - sparsity
    command = max(int(0.4 * (units - output_size)), 1)
    inter = units - output_size - command
    return ncp(
        input_size,
        inter,
        command,
        output_size,
        sensory_fanout=max(int(inter * density), 1),
        inter_fanout=max(int(command * density), 1),
        recurrent_command_synapses=max(int(command * density * 2), 1),
        motor_fanin=max(int(command * density), 1),
        seed=seed,
    )


def build_wiring(settings: WiringConfig | None, input_size: int, hidden_size: int) -> Wiring:
    """The wiring that `settings` describe, fully connected if None.

    Raises:
        UsageError: If the sizes in the settings do not fit `hidden_size`.
    """
    wiring = settings or WiringConfig()
    if wiring.kind == "fully_connected":
        return fully_connected(hidden_size, input_size, wiring.output_size, wiring.seed, wiring.self_connections)
    if wiring.kind == "random":
        return random(hidden_size, input_size, wiring.output_size, wiring.sparsity, wiring.seed)
    outputs = wiring.output_size or 0
    if wiring.kind == "auto_ncp":
        return auto_ncp(hidden_size, input_size, outputs, wiring.sparsity, wiring.seed)
    inter, command = wiring.inter_neurons or 0, wiring.command_neurons or 0
    if inter + command + outputs != hidden_size:
        raise UsageError(
            f"wiring: inter_neurons + command_neurons + output_size must be the {hidden_size} neurons of the layer, "
            f"got {inter} + {command} + {outputs}"
        )
    return ncp(
        input_size,
        inter,
        command,
        outputs,
        wiring.sensory_fanout or 0,
        wiring.inter_fanout or 0,
        wiring.recurrent_command_synapses or 0,
        wiring.motor_fanin or 0,
        wiring.seed,
    )


class _Circuit:
    """Polarity matrices of an `ncp` while its synapses are drawn."""

    def __init__(self, input_size: int, units: int, seed: int) -> None:
        self.adjacency = np.zeros((units, units), dtype=np.int8)
        self.sensory = np.zeros((input_size, units), dtype=np.int8)
        self.draw = np.random.RandomState(seed)

    def fan_out(self, matrix: np.ndarray, sources: Sequence[int], targets: Sequence[int], fan: int) -> None:
        """Connect each source to `fan` drawn targets; then each target without a source to the average number."""
        for source in sources:
            self._connect(matrix, source, targets, fan)
        left_out = [target for target in targets if not matrix[sources, target].any()]
        share = min(max(int(len(sources) * fan / len(targets)), 1), len(sources))
        for target in left_out:
            self._connect(matrix.T, target, sources, share)

    def scatter(self, neurons: Sequence[int], count: int) -> None:
        """Connect `count` drawn pairs."""
        for _ in range(count):
            source, target = self.draw.choice(neurons), self.draw.choice(neurons)
            self.adjacency[source, target] = self.draw.choice(NCP_POLARITIES)

    def _connect(self, matrix: np.ndarray, source: int, targets: Sequence[int], count: int) -> None:
        chosen = self.draw.choice(targets, size=count, replace=False)
        matrix[source, chosen] = self.draw.choice(NCP_POLARITIES, size=count)


def _outputs(units: int, output_size: int | None) -> int:
    if output_size is not None and output_size > units:
        raise UsageError(f"wiring: output_size must be at most the {units} neurons of the layer, got {output_size}")
    return units if output_size is None else output_size
