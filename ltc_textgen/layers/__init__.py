"""The couplings: what a neuron's conductances depend on. One layer of any of them is a `LiquidCell`."""

from collections.abc import Mapping

from ltc_textgen.config import Coupling, ModelConfig
from ltc_textgen.layers.base import LiquidCell, MembraneCell
from ltc_textgen.layers.cfc import CfCCell
from ltc_textgen.layers.diagonal import DiagonalCell
from ltc_textgen.layers.full import FullCell
from ltc_textgen.layers.ncps import cell_from_ncps
from ltc_textgen.layers.synaptic import SynapticCell
from ltc_textgen.layers.wirings import Wiring, build_wiring

CELLS: Mapping[Coupling, type[LiquidCell]] = {
    Coupling.full: FullCell,
    Coupling.synaptic: SynapticCell,
    Coupling.diagonal: DiagonalCell,
    Coupling.cfc: CfCCell,
}


def build_cell(settings: ModelConfig, input_size: int, hidden_size: int) -> LiquidCell:
    """The layer that `settings` describe, freshly initialised.

    Args:
        settings: Coupling, solver, time, and what the coupling needs besides.
        input_size: D, features of one token.
        hidden_size: N, neurons.

    Raises:
        UsageError: If the settings do not fit the coupling or the sizes.
    """
    return CELLS[settings.coupling].from_settings(settings, input_size, hidden_size)


__all__ = [
    "CELLS",
    "CfCCell",
    "DiagonalCell",
    "FullCell",
    "LiquidCell",
    "MembraneCell",
    "SynapticCell",
    "Wiring",
    "build_cell",
    "build_wiring",
    "cell_from_ncps",
]
