"""Cells and inputs on which the fused kernels are held to the reference."""

import copy
from dataclasses import dataclass

import torch

from ltc_textgen.kernels import dispatch, library
from ltc_textgen.layers import DiagonalLTC, FullLTC, LiquidLayer, SynapticLTC
from ltc_textgen.layers.wirings import auto_ncp, fully_connected

KINDS = ("diagonal", "full", "synaptic")
SETS = [name for name in ("avx512", "avx2", "baseline") if library.use_instruction_set(name)]
if SETS:
    library.use_instruction_set(SETS[0])


def build(kind: str, neurons: int, *, sparse: bool = False, steps: int = 6, horizon: float = 0.5, **options):
    """A cell with parameters that matter: no zero r, reversal potentials of any sign and size."""
    options |= {"steps": steps, "step_size": horizon / steps}
    if kind == "synaptic":
        wiring = auto_ncp(neurons, 3, neurons // 4, 0.6, 1) if sparse else fully_connected(neurons, 3)
        cell = SynapticLTC(3, neurons, wiring=wiring, **options)
    else:
        cell = {"diagonal": DiagonalLTC, "full": FullLTC}[kind](3, neurons, **options)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name.endswith(("self_weight", "reversal")):
                parameter.normal_()
            elif name == "log_capacitance":
                parameter.uniform_(-0.5, 2.0)
    return cell


@dataclass
class Case:
    """Inputs of a scan, and weights that make a loss of its outputs."""

    drive: torch.Tensor
    x: torch.Tensor
    elapsed: torch.Tensor
    states_weight: torch.Tensor
    last_weight: torch.Tensor

    @classmethod
    def draw(cls, kind: str, batch: int, tokens: int, neurons: int):
        """Uneven elapsed times, a zero among them."""
        drive = 2 * torch.randn(batch, tokens, neurons if kind == "full" else 2 * neurons)
        elapsed = 2 * torch.rand(batch, tokens)
        elapsed[-1, 0] = 0.0
        shape = (batch, neurons)
        drive = drive.abs() if kind == "synaptic" else drive
        return cls(drive, torch.randn(shape), elapsed, torch.randn(batch, tokens, neurons), torch.randn(shape))

    def run(
        self, cell: LiquidLayer, choice: str = "auto", dtype: torch.dtype = torch.float32
    ) -> dict[str, torch.Tensor]:
        """States, last state, and every gradient by name."""
        cell = copy.deepcopy(cell).to(dtype)
        inputs = {name: getattr(self, name).detach().to(dtype).requires_grad_() for name in ("drive", "x", "elapsed")}
        with dispatch.use(choice):
            states, last = cell.scan(*inputs.values())
        loss = (states * self.states_weight.to(dtype)).sum() + (last * self.last_weight.to(dtype)).sum()
        loss.backward()
        results = {"states": states.detach(), "last": last.detach()}
        results |= {f"gradient of {name}": tensor.grad for name, tensor in inputs.items()}
        for name, parameter in cell.named_parameters():
            if parameter.grad is not None:
                results[f"gradient of {name}"] = parameter.grad
        return results


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours.double() - reference.double()).abs().max() / reference.abs().max().clamp_min(1e-6))


def disagreements(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> dict[str, float]:
    """What is further from the float64 reference than the promise: 1e-5 for outputs, 1e-4 for gradients."""
    assert ours.keys() == reference.keys()
    errors = {name: relative_error(ours[name], reference[name]) for name in ours}
    return {name: e for name, e in errors.items() if not e <= (1e-4 if name.startswith("gradient") else 1e-5)}
