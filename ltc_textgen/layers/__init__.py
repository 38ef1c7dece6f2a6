"""Liquid layers: what a neuron's conductances depend on differs, how they are called does not.

    layer = DiagonalLTC(input_size=32, hidden_size=64)
    outputs, state = layer(torch.randn(8, 100, 32))         # (B, T, N) and (B, N)

| layer         | coupling | conductances depend on                          |
|---------------|----------|-------------------------------------------------|
| `DiagonalLTC` | diagonal | the inputs and the neuron itself                |
| `FullLTC`     | full     | the inputs and all neurons, one synapse each    |
| `SynapticLTC` | synaptic | one sigmoid per pair of neurons                 |
| `CfC`         | cfc      | a closed form in place of the equation          |
"""

from collections.abc import Mapping

from ltc_textgen.config import Coupling, ModelConfig
from ltc_textgen.layers.base import LiquidLayer, MembraneLayer
from ltc_textgen.layers.cfc import CfC
from ltc_textgen.layers.diagonal import DiagonalLTC
from ltc_textgen.layers.full import FullLTC
from ltc_textgen.layers.ncps import layer_from_ncps, layer_to_ncps
from ltc_textgen.layers.synaptic import SynapticLTC
from ltc_textgen.layers.wirings import Wiring, build_wiring

LAYERS: Mapping[Coupling, type[LiquidLayer]] = {
    Coupling.full: FullLTC,
    Coupling.synaptic: SynapticLTC,
    Coupling.diagonal: DiagonalLTC,
    Coupling.cfc: CfC,
}


def build_layer(settings: ModelConfig, input_size: int, hidden_size: int) -> LiquidLayer:
    """The layer that `settings` describe, freshly initialised.

    Args:
        settings: Coupling, solver, time, and what the coupling needs besides.
        input_size: D, features of one token.
        hidden_size: N, neurons.

    Raises:
        UsageError: If the settings do not fit the coupling or the sizes.
    """
    return LAYERS[settings.coupling].from_settings(settings, input_size, hidden_size)


__all__ = [
    "LAYERS",
    "CfC",
    "DiagonalLTC",
    "FullLTC",
    "LiquidLayer",
    "MembraneLayer",
    "SynapticLTC",
    "Wiring",
    "build_layer",
    "build_wiring",
    "layer_from_ncps",
    "layer_to_ncps",
]
