"""Call the kernels' operators with wrong arguments: no call may crash or write outside its arrays.

`python tests/kernels/fuzz_operators.py [--calls 2000] [--seed 0]`; `make sanitize` runs it on a build with the address
sanitizer. Right calls of every operator `ltc::*` are recorded from small networks, forward and backward; each is then
repeated with arguments of other sizes, strides, dtypes and values. An error is a right answer, a crash is not.
"""

import argparse
import random
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ltc_textgen.config import ModelConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.kernels.library import LIBRARY

WIRED = {"kind": "auto_ncp", "output_size": 4}
NETWORKS: list[dict[str, Any]] = [
    {"coupling": "diagonal", "block": "liquid"},
    {"coupling": "diagonal", "solver": "exponential", "steps": 2},
    {"coupling": "diagonal", "block": "liquid", "conv_width": 1, "tie_embeddings": True},
    {"coupling": "full", "solver": "runge_kutta", "steps": 2},
    {"coupling": "synaptic", "wiring": WIRED, "steps": 2},
    {"coupling": "synaptic", "solver": "explicit", "steps": 3},
    {"coupling": "cfc", "block": "liquid"},
]
Call = tuple[Any, tuple[Any, ...]]


class Recorder(TorchDispatchMode):
    """Keeps the arguments of every call of an operator of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ltc":
            self.calls.append((func, tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args)))
        return func(*args, **(kwargs or {}))


def recorded() -> list[Call]:
    """Right calls of all operators."""
    torch.manual_seed(0)
    with Recorder() as recorder:
        for settings in NETWORKS:
            for hidden, batch, length in ((9, 2, 3), (17, 1, 9)):
                shape = {"input_size": 11, "hidden_size": hidden, "num_layers": 1}
                network = LiquidTimeConstantNetwork.from_settings(ModelConfig.parse(shape | settings, "model"))
                ids = torch.randint(11, (batch, length))
                network.train()(ids, labels=ids).loss.backward()
                with torch.no_grad():
                    network.eval()(ids)
    return recorder.calls


def mutated(chance: random.Random, value: Any) -> Any:
    """An argument instead of another, mostly of the same kind."""
    if isinstance(value, torch.Tensor):
        return mutated_tensor(chance, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice((-1, 0, 1, 2, 5, 17, 99, -(2**63)))
    if isinstance(value, float):
        return chance.choice((0.0, -1.0, float("nan"), float("inf"), 1e-300))
    return chance.choice((None, torch.zeros(3), torch.zeros(0)))


def mutated_tensor(chance: random.Random, value: torch.Tensor) -> Any:
    """A tensor of another size, dtype, layout or content."""
    shape = list(value.shape)
    axis = chance.randrange(len(shape)) if shape else 0
    match chance.randrange(9):
        case 0 if shape:
            shape[axis] = chance.choice((0, 1, shape[axis] + 1, max(0, shape[axis] - 1), shape[axis] * 2))
            return torch.rand(shape).to(value.dtype)
        case 1:
            return value.to(chance.choice((torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)))
        case 2 if shape:
            return (
                value.repeat_interleave(2, axis).narrow(axis, 0, shape[axis])
                if chance.random() < 0.3
                else value.mT
                if value.ndim > 1
                else value[::2]
            )
        case 3 if shape:
            return value.select(axis, 0).unsqueeze(axis).expand(shape) if shape[axis] else value
        case 4:
            return torch.full_like(
                value, chance.choice((float("nan"), float("inf"), -1.0, 0.0, 3e38)) if value.is_floating_point() else 1
            )
        case 5:
            return value.flatten() if chance.random() < 0.5 else value.unsqueeze(0)
        case 6:
            return torch.empty(0, dtype=value.dtype)
        case 7:
            return chance.choice((value.to("meta"), value.to_sparse(), None, 3, value.conj()))
        case _:
            return torch.rand([chance.randrange(4) for _ in range(chance.randrange(5))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if LIBRARY is None:
        print("the package was built without a C++ compiler", file=sys.stderr)
        return 1
    torch.set_num_threads(2)
    calls, chance = recorded(), random.Random(options.seed)
    names = sorted({str(func) for func, _ in calls})
    answered = rejected = 0
    for number in range(options.calls):
        func, arguments = calls[number % len(calls)] if number < len(calls) else chance.choice(calls)
        changed = list(arguments)
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(len(changed))
            changed[at] = mutated(chance, changed[at])
        try:
            func(*changed)
            answered += 1
        except Exception:
            rejected += 1
    print(f"{len(names)} operators, {answered:,} calls answered, {rejected:,} rejected: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
