"""The recurrent state of a network as an object: an argument and a result, never kept on a module."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from ltc_textgen.errors import UsageError
from ltc_textgen.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class LiquidState:
    """All that a network remembers of the text it has read; its size does not depend on how long the text was.

    Args:
        neurons: State of the neurons, one tensor per layer.
        conv_state: Last conv_width - 1 inputs of the convolution, one tensor per liquid block; empty without blocks.
    """

    neurons: tuple[Float[Tensor, "B _"], ...]
    conv_state: tuple[Float[Tensor, "B _ D"], ...] = ()

    @property
    def batch_size(self) -> int:
        """B, the number of sequences."""
        return self.neurons[0].shape[0]

    def require(self, layers: int, neurons: tuple[int, int], conv_state: tuple[int, int, int] | None) -> None:
        """Reject the state of another network or batch.

        Args:
            layers: How many there are.
            neurons: (B, N).
            conv_state: (B, conv_width - 1, D); None in a plain network.

        Raises:
            UsageError: If the state has other tensors; the message names expected and got.
        """
        types = {tensor.dtype for tensor in self.neurons} - {torch.float32, torch.float64}
        if types:
            raise UsageError(f"state: expected neurons of torch.float32 or torch.float64, got {types.pop()}")
        for tensor in self.conv_state:
            if not tensor.is_floating_point():
                raise UsageError(f"state: expected floating-point conv_state, got {tensor.dtype}")
        for name, tensors, shape in (("neurons", self.neurons, neurons), ("conv_state", self.conv_state, conv_state)):
            expected = [shape] * layers if shape else []
            got = [tuple(tensor.shape) for tensor in tensors]
            if got != expected:
                raise UsageError(f"state: expected {name} {_shapes(expected)}, got {_shapes(got)}")

    def map(self, function: Callable[[Tensor], Tensor]) -> "LiquidState":
        """The state with `function` applied to each of its tensors."""
        return LiquidState(tuple(map(function, self.neurons)), tuple(map(function, self.conv_state)))

    def detach(self) -> "LiquidState":
        """The same numbers, cut from the graph: where truncated backpropagation ends."""
        return self.map(lambda tensor: tensor.detach())

    def select(self, index: Int[Tensor, " B"]) -> "LiquidState":
        """Sequences by number, in that order; repeats fork a state."""
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def to(self, device: torch.device | str) -> "LiquidState":
        """The state on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors, as a safetensors file holds them."""
        named = {f"neurons.{i}": tensor.contiguous() for i, tensor in enumerate(self.neurons)}
        return named | {f"conv_state.{i}": tensor.contiguous() for i, tensor in enumerate(self.conv_state)}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> "LiquidState":
        """The inverse of `tensors`."""

        def family(name: str) -> tuple[Tensor, ...]:
            count = sum(key.startswith(f"{name}.") for key in named)
            return tuple(named[f"{name}.{i}"] for i in range(count))

        return cls(family("neurons"), family("conv_state"))


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return f"{len(shapes)} of {shapes[0]}" if len(set(shapes)) == 1 else str(shapes or "none")


def _flatten(state: LiquidState) -> tuple[list[Any], Any]:
    return [state.neurons, state.conv_state], None


def _unflatten(parts: Iterable[Any], _: Any) -> LiquidState:
    state = object.__new__(LiquidState)  # torch puts placeholders where tensors are
    for name, part in zip(("neurons", "conv_state"), parts, strict=True):
        object.__setattr__(state, name, part)
    return state


# States go through torch.func and torch.export as tensors do.
pytree.register_pytree_node(
    LiquidState,
    _flatten,
    _unflatten,
    serialized_type_name="ltc_textgen.LiquidState",
    flatten_with_keys_fn=lambda state: (
        [(pytree.GetAttrKey("neurons"), state.neurons), (pytree.GetAttrKey("conv_state"), state.conv_state)],
        None,
    ),
)
