"""The error of the solver's step size: the same weights, integrated with smaller steps.

A network is trained with its solver, discretization error included; with the exact solution of its equation it may
predict worse. So two things are measured: the loss, and the distance of the states from those of a much finer
integration.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ltc_textgen.analysis.reading import observe_text
from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.layers.base import MembraneLayer
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.shapes import Tensor

REFERENCE = 32
"""Sub-steps, per sub-step of the network, of the solution that others are compared with (fourth order)."""


@dataclass(frozen=True)
class SolverError:
    """One way to integrate the same network.

    Args:
        solver: Its name.
        steps: Sub-steps per token.
        step_size: Length of each, in tokens; the horizon is that of the network.
        state_error: Root mean square difference of the states to the reference, over tokens and neurons, one per layer.
        loss: Mean loss on the text, in nats per token.
    """

    solver: str
    steps: int
    step_size: float
    state_error: list[float]
    loss: float


def solver_error(
    model: LiquidNetwork,
    text: str | Tensor,
    tokenizer: Any = None,
    *,
    refinements: Sequence[int] = (1, 2, 4, 8),
    solvers: Sequence[Solver] | None = None,
) -> list[SolverError]:
    """Integrate a network with smaller steps, and with other solvers.

    Args:
        model: Network, in any mode; it is left as it was.
        text: A text, or token ids (1, T).
        tokenizer: That of the run directory if None.
        refinements: By how much each sub-step is divided.
        solvers: That of the network if None.

    Raises:
        UsageError: If the network is a closed form, which has no solver, or a refinement is below 1.
    """
    cells = [layer.cell for layer in model.stack()]
    if not all(isinstance(cell, MembraneLayer) for cell in cells):
        raise UsageError("solver error: coupling = cfc is a closed form and has no solver")
    if not refinements or min(refinements) < 1:
        raise UsageError(f"solver error: expected refinements of at least 1, got {list(refinements)}")
    ids, settings = model.token_ids(text, tokenizer), model.settings
    with _integrated(model, Solver.runge_kutta, REFERENCE):
        reference, _ = _read(model, ids)
    found = []
    for solver in solvers or [settings.solver]:
        for factor in refinements:
            with _integrated(model, Solver(solver), factor):
                states, loss = _read(model, ids)
            errors = [
                float((ours - exact).square().mean().sqrt()) for ours, exact in zip(states, reference, strict=True)
            ]
            steps, size = settings.steps * factor, settings.step_size / factor
            found.append(SolverError(Solver(solver).value, steps, size, errors, loss))
    return found


@contextmanager
def _integrated(model: LiquidNetwork, solver: Solver, factor: int) -> Iterator[None]:
    """The network with another solver and smaller steps, until the `with` ends."""
    cells = [layer.cell for layer in model.stack() if isinstance(layer.cell, MembraneLayer)]
    before = [(cell.solver, cell.steps, cell.step_size) for cell in cells]
    try:
        for cell in cells:
            cell.solver, cell.steps, cell.step_size = solver, cell.steps * factor, cell.step_size / factor
        yield
    finally:
        for cell, (old, steps, size) in zip(cells, before, strict=True):
            cell.solver, cell.steps, cell.step_size = old, steps, size


def _read(model: LiquidNetwork, ids: Tensor) -> tuple[list[Tensor], float]:
    """States of every layer in float64, (T, N), and the mean loss."""
    chunks = list(observe_text(model, ids))
    surprise = torch.cat([part.surprise for part in chunks])
    layers = [torch.cat([part.layers[i].states[0] for part in chunks]).double() for i in range(len(model.layers))]
    return layers, float(surprise.double().nanmean())
