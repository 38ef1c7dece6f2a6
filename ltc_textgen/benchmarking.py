"""How fast recurrent layers are, measured side by side: the layers of this package and their peers.

A machine's speed drifts, so contenders are never timed one after the other: every round times each of them once, and a
comparison is the median over rounds of the ratio within a round (`race`, `ratio`). The activation memory of a layer is
what autograd keeps of one forward pass for the backward pass, parameters and input aside (`saved_bytes`).

`compare_layers` is what `ltc bench` shows; benchmarks/speed.py adds the project's own bars and sweeps.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ltc_textgen.config import ModelConfig
from ltc_textgen.kernels.dispatch import Choice, use
from ltc_textgen.kernels.newton_scan import linear_scan
from ltc_textgen.layers import LiquidLayer, build_layer
from ltc_textgen.shapes import Float, Tensor

Call = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """A layer and the input that it reads.

    Args:
        name: What the table calls it.
        layer: Maps (B, T, D) to (B, T, O), or to a tuple that begins with that.
        inputs: (B, T, D).
        kernels: Which kernels of this package it may use (see `dispatch.use`).
    """

    name: str
    layer: nn.Module
    inputs: Tensor
    kernels: Choice = "auto"

    @property
    def tokens(self) -> int:
        """Tokens of one call."""
        return self.inputs.shape[0] * self.inputs.shape[1]

    def outputs(self) -> Tensor:
        """The outputs of one forward pass, (B, T, O)."""
        with use(self.kernels):
            result = self.layer(self.inputs)
        return result[0] if isinstance(result, tuple) else result

    def forward(self) -> None:
        """One pass as in generation: no gradients."""
        with torch.no_grad():
            self.outputs()

    def train(self) -> None:
        """One pass as in training: gradients of all parameters, and of the input if it requires one.

        An input that requires one is that of a layer inside a network; one that does not is data.
        """
        self.layer.zero_grad(set_to_none=True)
        self.inputs.grad = None
        outputs = self.outputs()
        outputs.backward(torch.ones_like(outputs))


@dataclass(frozen=True)
class LayerSpeed:
    """What was measured of one layer."""

    name: str
    batch_size: int
    tokens: int
    width: int
    parameters: int
    forward_tokens_per_second: float
    train_tokens_per_second: float
    activation_bytes_per_token: float


class MinGRU(nn.Module):
    """Gates that see the input alone, hence a linear recurrence: x_t = (1 - z) x_{t-1} + z h, z and h from u_t.

    Source: Feng et al. 2024, arXiv:2410.01201, section 3.1 (minGRU), solved by `linear_scan`.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_size, 2 * hidden_size)

    def forward(self, u: Float[Tensor, "B T D"]) -> Float[Tensor, "B T N"]:
        """The states after each token, from the zero state."""
        gate, candidate = self.input(u).chunk(2, dim=-1)
        update = torch.sigmoid(gate)
        return linear_scan(1 - update, update * candidate)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run with this many CPU threads; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def race(calls: Mapping[str, Call], rounds: int = 7, seconds: float = 0.2) -> dict[str, list[float]]:
    """Time calls in turn.

    Args:
        calls: What to time, by name. Each is called once beforehand, for free.
        rounds: How often each is timed; every round times all.
        seconds: How long one timing lasts at least; a quick call is repeated within it.

    Returns:
        Seconds per call, one value per round, by name.
    """
    for call in calls.values():
        call()
    repeats = {}
    for name, call in calls.items():
        repeats[name] = max(1, round(seconds / max(_seconds(call, 1), 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(_seconds(call, repeats[name]))
    return taken


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster `fast` is: the median over rounds of the ratio within each."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def saved_bytes(outputs: Callable[[], Tensor], spare: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `outputs()`, each storage once, those of `spare` left out."""
    left_out = {tensor.untyped_storage().data_ptr() for tensor in spare}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage is freed and its address counted for another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs()
    return sum(kept.values())


def activation_bytes(contender: Contender) -> int:
    """`saved_bytes` of a contender's forward pass."""
    return saved_bytes(contender.outputs, [*contender.layer.parameters(), contender.inputs])


def inputs(batch_size: int, tokens: int, width: int) -> Float[Tensor, "B T D"]:
    """What every contender of a comparison reads."""
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, tokens, width, generator=drawn).requires_grad_()


def liquid_layer(width: int, *, inputs_per_token: int | None = None, **settings: Any) -> LiquidLayer:
    """A layer of this package with `width` neurons; settings as `ModelConfig`, step_size 1 / steps if not given."""
    settings.setdefault("step_size", 1 / settings.get("steps", 6))
    config = ModelConfig.parse({"input_size": 2, "hidden_size": width, **settings})
    return build_layer(config, inputs_per_token or width, width)


def liquid_layers(batch_size: int, tokens: int, width: int, steps: int) -> list[Contender]:
    """The couplings of this package."""
    u, few = inputs(batch_size, tokens, width), inputs(4, min(tokens, 8), width)
    synaptic: dict[str, Any] = {"steps": steps, "coupling": "synaptic"}
    wiring = {"kind": "auto_ncp", "output_size": max(1, width // 4)}
    made = [
        Contender(f"{name}, {k} step{'s' if k > 1 else ''}", liquid_layer(width, steps=k, coupling=name), u)
        for name in ("diagonal", "full")
        for k in sorted({1, steps})
    ]
    made.append(Contender(f"synaptic, {steps} steps", liquid_layer(width, **synaptic), few))
    made.append(Contender(f"synaptic, AutoNCP, {steps} steps", liquid_layer(width, **synaptic, wiring=wiring), few))
    made.append(Contender("cfc", liquid_layer(width, coupling="cfc"), u))
    return made


def peers(batch_size: int, tokens: int, width: int, steps: int) -> list[Contender]:
    """Layers of PyTorch and, where it is installed, of ncps."""
    u = inputs(batch_size, tokens, width)
    made = [
        Contender("nn.LSTM", nn.LSTM(width, width, batch_first=True), u),
        Contender("nn.GRU", nn.GRU(width, width, batch_first=True), u),
        Contender("minGRU", MinGRU(width, width), u),
    ]
    if importlib.util.find_spec("ncps") is None:
        return made
    made.append(Contender("ncps CfC", ncps_cfc(width), u))
    # At more tokens it would not fit: it keeps B x N x N numbers many times per sub-step.
    few = inputs(4, min(tokens, 8), width)
    made.append(Contender(f"ncps LTC, {steps} steps", ncps_ltc(width, steps), few))
    return made


def ncps_cfc(width: int) -> nn.Module:
    """The closed-form layer of ncps with the backbone of our default."""
    from ncps.torch import CfC

    return CfC(width, width, backbone_units=128, backbone_layers=1, backbone_dropout=0.0)


def ncps_ltc(width: int, steps: int, outputs: int | None = None) -> nn.Module:
    """The LTC layer of ncps, fully connected, or wired by AutoNCP if it has fewer outputs than neurons."""
    from ncps.torch import LTC
    from ncps.wirings import AutoNCP

    return LTC(width, AutoNCP(width, outputs) if outputs else width, ode_unfolds=steps)


def compare_layers(
    batch_size: int = 32,
    tokens: int = 64,
    width: int = 256,
    steps: int = 6,
    *,
    rounds: int = 5,
    seconds: float = 0.2,
    thread_count: int | None = None,
) -> list[LayerSpeed]:
    """Time the layers of this package and their peers.

    Args:
        batch_size: B.
        tokens: T.
        width: D = N.
        steps: Solver sub-steps.
        rounds: Timings of each layer.
        seconds: Length of a timing.
        thread_count: CPU threads; as they are if None.

    Returns:
        One row per layer: medians over the rounds.
    """
    torch.manual_seed(0)
    with threads(thread_count):
        contenders = [*peers(batch_size, tokens, width, steps), *liquid_layers(batch_size, tokens, width, steps)]
        return measure(contenders, rounds, seconds)


def measure(contenders: Sequence[Contender], rounds: int, seconds: float) -> list[LayerSpeed]:
    """Forward and training speed and activation memory of contenders, timed in turn."""
    forward = race({c.name: c.forward for c in contenders}, rounds, seconds)
    train = race({c.name: c.train for c in contenders}, rounds, seconds)
    return [
        LayerSpeed(
            name=c.name,
            batch_size=c.inputs.shape[0],
            tokens=c.inputs.shape[1],
            width=c.inputs.shape[2],
            parameters=sum(p.numel() for p in c.layer.parameters() if p.requires_grad),
            forward_tokens_per_second=c.tokens / statistics.median(forward[c.name]),
            train_tokens_per_second=c.tokens / statistics.median(train[c.name]),
            activation_bytes_per_token=activation_bytes(c) / c.tokens,
        )
        for c in contenders
    ]


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Rows as lines of aligned columns, numbers in three significant digits."""

    def cell(value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    texts = [list(columns), *([cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    align = [str.ljust] + [str.rjust] * (len(columns) - 1)
    return "\n".join("  ".join(a(t, w) for a, t, w in zip(align, line, widths, strict=True)).rstrip() for line in texts)


def speed_rows(speeds: Sequence[LayerSpeed]) -> list[dict[str, object]]:
    """`LayerSpeed` for `table` and for JSON."""
    return [asdict(speed) for speed in speeds]
