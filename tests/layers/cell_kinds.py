"""Every kind of cell, small and in float64, for the tests of what all of them owe."""

from collections.abc import Callable
from itertools import product

import pytest
import torch

from ltc_textgen.config import Solver
from ltc_textgen.layers import CfC, DiagonalLTC, FullLTC, LiquidLayer, MembraneLayer, SynapticLTC
from ltc_textgen.layers.wirings import auto_ncp, random

INPUTS, NEURONS = 3, 8

MEMBRANE_KINDS: dict[str, Callable[..., MembraneLayer]] = {
    "full": lambda d, n, **kw: FullLTC(d, n, **kw),
    "diagonal": lambda d, n, **kw: DiagonalLTC(d, n, **kw),
    "synaptic": lambda d, n, **kw: SynapticLTC(d, n, **kw),
    "synaptic_random": lambda d, n, **kw: SynapticLTC(d, n, wiring=random(n, d, 3, 0.4), **kw),
    "synaptic_ncp": lambda d, n, **kw: SynapticLTC(d, n, wiring=auto_ncp(n, d, 2), **kw),
}
CLOSED_KINDS: dict[str, Callable[..., LiquidLayer]] = {
    "cfc_default": lambda d, n, **kw: CfC(d, n, backbone_units=5, **kw),
    "cfc_pure": lambda d, n, **kw: CfC(d, n, mode="pure", backbone_units=5, backbone_layers=2, **kw),
    "cfc_no_gate": lambda d, n, **kw: CfC(d, n, mode="no_gate", backbone_layers=0, **kw),
    "cfc_wired": lambda d, n, **kw: CfC(d, n, wiring=auto_ncp(n, d, 2), **kw),
    "cfc_wired_pure": lambda d, n, **kw: CfC(d, n, mode="pure", wiring=auto_ncp(n, d, 2), **kw),
}


def make(kind: str, solver: Solver = Solver.semi_implicit, adaptive: bool = True, **settings) -> LiquidLayer:
    """A float64 cell of `kind` whose parameters have all left their initial values."""
    torch.manual_seed(0)
    settings = {"steps": 2, "step_size": 0.4} | settings
    d, n = settings.pop("inputs", INPUTS), settings.pop("neurons", NEURONS)
    if kind in CLOSED_KINDS:
        cell = CLOSED_KINDS[kind](d, n, **settings)
    else:
        cell = MEMBRANE_KINDS[kind](d, n, solver=solver, adaptive=adaptive, **settings)
    cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return cell


MEMBRANE_CASES = [
    pytest.param(kind, solver, adaptive, id=f"{kind}-{solver}-{'adaptive' if adaptive else 'frozen'}")
    for kind, solver, adaptive in product(MEMBRANE_KINDS, Solver, [True, False])
]
ALL_CASES = MEMBRANE_CASES + [pytest.param(kind, Solver.semi_implicit, True, id=kind) for kind in CLOSED_KINDS]
