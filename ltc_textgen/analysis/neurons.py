"""Names of neurons: L2N117 is neuron 117 of layer 2, both counted from 0."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ltc_textgen.errors import UsageError


class Neuron(NamedTuple):
    """A neuron of a network.

    Args:
        layer: From the embedding to the output, from 0.
        number: Within its layer, from 0.

    Example:
        >>> str(Neuron(2, 117)), Neuron.parse("L2N117").number
        ('L2N117', 117)
    """

    layer: int
    number: int

    def __str__(self) -> str:
        return f"L{self.layer}N{self.number}"

    @classmethod
    def parse(cls, name: "str | Neuron") -> "Neuron":
        """The neuron of a name.

        Raises:
            UsageError: If it is no such name.
        """
        if isinstance(name, Neuron):
            return name
        found = re.fullmatch(r"[Ll](\d{1,6})[Nn](\d{1,9})", name)
        if found is None:
            raise UsageError(f"neuron {name!r}: expected a name such as L2N117 (layer 2, neuron 117)")
        return cls(int(found[1]), int(found[2]))


def checked_neurons(names: Iterable[str | Neuron], sizes: list[int]) -> list[Neuron]:
    """Neurons by name.

    Args:
        names: Their names.
        sizes: N of every layer.

    Raises:
        UsageError: If there is none, or one is not of a network of these sizes.
    """
    neurons = [Neuron.parse(name) for name in names]
    if not neurons:
        raise UsageError("neurons: expected at least one")
    for neuron in neurons:
        if neuron.layer >= len(sizes) or neuron.number >= sizes[neuron.layer]:
            raise UsageError(f"neuron {neuron}: the network has {len(sizes)} layers of {max(sizes)} neurons, from L0N0")
    return neurons
