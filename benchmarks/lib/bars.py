"""The project's bars on speed, memory and accuracy: the measurements and the required values."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltc_textgen.benchmarking import Contender, activation_bytes, inputs, liquid_layer, ncps_ltc, race, ratio, threads
from ltc_textgen.config import Coupling, Solver
from ltc_textgen.layers import LiquidLayer, layer_from_ncps


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements; `quick` is a smoke test."""

    batch: int = 32
    tokens: int = 64
    width: int = 256
    steps: int = 6
    rounds: int = 7
    seconds: float = 0.3
    batches: tuple[int, ...] = (1, 4, 16, 32)  # candidates for the synaptic coupling's best batch size
    their_batches: tuple[int, ...] = (1, 2, 4, 8)  # candidates for ncps, limited by its memory
    few_tokens: int = 8
    lengths: tuple[int, ...] = (64, 256, 1024, 4096)
    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    long: int = 4096

    @classmethod
    def quick(cls) -> "Sizes":
        return cls(2, 6, 12, 2, 2, 0.002, (1, 2), (1, 2), 3, (8, 16), (8, 16), 32)


@dataclass(frozen=True)
class Bar:
    name: str
    measured: float
    required: float
    at_least: bool = True
    detail: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        met = self.measured >= self.required if self.at_least else self.measured <= self.required
        sign = ">=" if self.at_least else "<="
        return {**asdict(self), "required": f"{sign} {self.required:g}", "met": met and math.isfinite(self.measured)}


class Scan(nn.Module):
    """The recurrence of a layer without its projections."""

    def __init__(self, cell: LiquidLayer) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, drive: Tensor) -> Tensor:
        batch, tokens = drive.shape[:2]
        return self.cell.scan(drive, self.cell.initial_state(batch), torch.ones(batch, tokens))[0]


def times_faster(slow: Contender, fast: Contender, sizes: Sizes) -> tuple[float, dict[str, Any]]:
    """Ratio of training tokens/s of `fast` over `slow`, whose numbers of tokens may differ."""
    taken = race({"slow": slow.train, "fast": fast.train}, sizes.rounds, sizes.seconds)
    per_token = {"slow": [t / slow.tokens for t in taken["slow"]], "fast": [t / fast.tokens for t in taken["fast"]]}
    speeds = {slow.name: sorted(1 / t for t in per_token["slow"]), fast.name: sorted(1 / t for t in per_token["fast"])}
    return ratio(per_token["slow"], per_token["fast"]), {"train_tokens_per_second": speeds}


def against_lstm(sizes: Sizes) -> list[Bar]:
    u = inputs(sizes.batch, sizes.tokens, sizes.width)
    recurrent = nn.LSTM(sizes.width, sizes.width, batch_first=True)
    lstm, bars = Contender("nn.LSTM", recurrent, u), []
    name = "diagonal layer, 1 sub-step, input is data, against nn.LSTM"
    ours = Contender(name, liquid_layer(sizes.width, steps=1, coupling="diagonal"), u.detach())
    measured, detail = times_faster(Contender("nn.LSTM", recurrent, u.detach()), ours, sizes)
    bars.append(Bar(name, measured, 4, detail=detail))
    for coupling, steps, required in (("diagonal", 1, 4), ("diagonal", sizes.steps, 4), ("full", sizes.steps, 1)):
        name = f"{coupling} layer, {steps} sub-step{'s' if steps > 1 else ''}, against nn.LSTM"
        ours = Contender(name, liquid_layer(sizes.width, steps=steps, coupling=coupling), u)
        measured, detail = times_faster(lstm, ours, sizes)
        bars.append(Bar(name, measured, required, detail=detail))
    return bars


def scan_alone(sizes: Sizes) -> list[Bar]:
    cell = liquid_layer(sizes.width, steps=sizes.steps, coupling="diagonal")
    drive = cell.project(inputs(sizes.batch, sizes.tokens, sizes.width)).detach().requires_grad_()
    reference = Contender("PyTorch", Scan(cell), drive, kernels="reference")
    measured, detail = times_faster(reference, Contender("kernel", Scan(cell), drive), sizes)
    return [Bar("diagonal scan alone against the same mathematics in PyTorch", measured, 20, detail=detail)]


def against_ncps(sizes: Sizes) -> list[Bar]:
    """The synaptic coupling with the weights of an ncps LTC, each at its best batch size."""
    bars = []
    for wiring, outputs, required in (("fully connected", None, 8), ("AutoNCP", max(1, sizes.width // 4), 30)):
        torch.manual_seed(0)
        theirs = ncps_ltc(sizes.width, sizes.steps, outputs)
        ours = layer_from_ncps(theirs.state_dict(), steps=sizes.steps)
        u = inputs(2, sizes.few_tokens, sizes.width)
        with torch.no_grad():
            apart = (theirs(u)[0] - ours(u)[0]).abs().max().item()
        best = (
            best_batch("ncps LTC", theirs, sizes.their_batches, sizes),
            best_batch("synaptic", ours, sizes.batches, sizes),
        )
        measured, detail = times_faster(*best, sizes)
        detail |= {"batches": [c.inputs.shape[0] for c in best], "largest_difference_of_outputs": apart}
        bars.append(Bar(f"synaptic, {wiring}, against ncps LTC", measured, required, detail=detail))
        if outputs is None:
            bars.extend(memory(theirs, ours, sizes))
    return bars


def best_batch(name: str, layer: nn.Module, batches: tuple[int, ...], sizes: Sizes) -> Contender:
    tried = {batch: Contender(name, layer, inputs(batch, sizes.few_tokens, sizes.width)) for batch in batches}
    taken = race({str(batch): c.train for batch, c in tried.items()}, 2, sizes.seconds / 3)
    return min(tried.values(), key=lambda c: min(taken[str(c.inputs.shape[0])]) / c.tokens)


def memory(theirs: nn.Module, ours: nn.Module, sizes: Sizes) -> list[Bar]:
    u = inputs(sizes.their_batches[-1], sizes.few_tokens, sizes.width)
    kept = [activation_bytes(Contender(name, layer, u)) for name, layer in (("ncps", theirs), ("ours", ours))]
    shape = {"batch": u.shape[0], "tokens": u.shape[1], "width": u.shape[2], "steps": sizes.steps}
    peak = [resident_peak({"layer": layer, **shape}) for layer in ("ncps", "ours")]
    name = "synaptic, fully connected: ncps LTC's {} over ours"
    return [
        Bar(name.format("activations kept"), kept[0] / max(kept[1], 1), 50, detail={"bytes": kept, **shape}),
        Bar(name.format("peak resident memory"), peak[0] / max(peak[1], 1), 50, detail={"bytes": peak, **shape}),
    ]


def resident_peak(what: dict[str, Any]) -> int:
    """Bytes by which a training pass raises the resident memory of a fresh process."""
    command = [sys.executable, str(Path(__file__).with_name("peak_memory.py")), json.dumps(what)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def linearity(sizes: Sizes) -> list[Bar]:
    """The largest relative deviation of the cost per token, or per neuron, from its geometric mean over the sizes."""

    def deviation(name: str, contenders: dict[int, Contender]) -> Bar:
        taken = race({str(size): c.train for size, c in contenders.items()}, max(3, sizes.rounds // 2), sizes.seconds)
        unit = {s: min(taken[str(s)]) / c.tokens / c.layer.hidden_size for s, c in contenders.items()}
        mean = math.exp(sum(map(math.log, unit.values())) / len(unit))
        return Bar(name, max(abs(u / mean - 1) for u in unit.values()), 0.15, False, {"seconds_per_token_neuron": unit})

    layer = liquid_layer(sizes.width, steps=1, coupling="diagonal")
    lengths = {t: Contender("", layer, inputs(8, t, sizes.width)) for t in sizes.lengths}
    narrow = {n: liquid_layer(n, inputs_per_token=64, steps=1, coupling="diagonal") for n in sizes.widths}
    widths = {n: Contender("", layer, inputs(8, 512, 64)) for n, layer in narrow.items()}
    return [
        deviation("diagonal layer: cost per token over sequence length", lengths),
        deviation("diagonal layer: cost per neuron over width", widths),
    ]


def both_cores(sizes: Sizes) -> list[Bar]:
    c = Contender("", liquid_layer(sizes.width, steps=1, coupling="diagonal"), inputs(1, sizes.long, sizes.width))

    def with_threads(count: int) -> Callable[[], None]:
        def call() -> None:
            with threads(count):
                c.train()

        return call

    taken = race({"1": with_threads(1), "2": with_threads(2)}, sizes.rounds, sizes.seconds)
    name = f"diagonal layer, batch 1, {sizes.long} tokens: 2 threads against 1"
    return [Bar(name, ratio(taken["1"], taken["2"]), 1.3, detail={"seconds": taken})]


def accuracy(sizes: Sizes) -> list[Bar]:
    """The largest error of float32 against the float64 reference, relative to each tensor's largest entry."""
    outputs, gradients = {}, {}
    for coupling in Coupling:
        for solver in Solver if coupling is not Coupling.cfc else [Solver.semi_implicit]:
            torch.manual_seed(0)
            # Short steps keep the conditionally stable solvers from diverging.
            cell = liquid_layer(sizes.width, coupling=coupling, solver=solver, steps=sizes.steps, step_size=0.005)
            for parameter in cell.parameters():
                if not parameter.any():  # zero feedback would leave its term untested
                    nn.init.normal_(parameter, std=0.5)
            u = inputs(2, min(sizes.tokens, 32), sizes.width)
            single, double = Contender("", cell, u), Contender("", *twin(cell, u), kernels="reference")
            errors = [relative(a, b) for a, b in zip(everything(single), everything(double), strict=True)]
            outputs[f"{coupling}, {solver}"], gradients[f"{coupling}, {solver}"] = errors[0], max(errors[1:])
    return [
        Bar("float32 outputs against the float64 reference", max(outputs.values()), 1e-5, False, outputs),
        Bar("float32 gradients against the float64 reference", max(gradients.values()), 1e-4, False, gradients),
    ]


def twin(cell: nn.Module, u: Tensor) -> tuple[nn.Module, Tensor]:
    return copy.deepcopy(cell).double(), u.detach().double().requires_grad_()


def everything(c: Contender) -> list[Tensor]:
    """The outputs, then the gradients of a random projection of them."""
    outputs = c.outputs()
    drawn = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
    leaves = [c.inputs, *(p for p in c.layer.parameters())]
    return [
        outputs.detach(),
        *(g for g in torch.autograd.grad(outputs, leaves, drawn, allow_unused=True) if g is not None),
    ]


def relative(ours: Tensor, reference: Tensor) -> float:
    scale = reference.abs().max().item()
    return (ours - reference).abs().max().item() / scale if scale else (ours - reference).abs().max().item()


BARS = (against_lstm, scan_alone, against_ncps, linearity, both_cores, accuracy)
