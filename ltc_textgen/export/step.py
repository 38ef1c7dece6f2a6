"""One token of a network as a module of plain tensors, the input of every exporter.

token (B,), elapsed (B,), state tensors  ->  logits (B, V), state tensors after the token, time constants (B, N) a layer
"""

from torch import nn

from ltc_textgen.model.blocks import LayerState, LiquidBlock, PlainLayer
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Float, Int, Tensor


class TokenStep(nn.Module):
    """One step of a network with its state as arguments and results.

    Args:
        network: Its weights are shared, and it is put into evaluation mode.
    """

    def __init__(self, network: LiquidNetwork) -> None:
        super().__init__()
        self.network = network.eval()
        # A convolution of width 1 has an empty state, which cannot be an input of a graph.
        self._initial = network.initial_state(1).tensors()
        self.state_names = [name for name, tensor in self._initial.items() if tensor.numel()]

    @property
    def initial(self) -> dict[str, Float[Tensor, "..."]]:
        """The state before the first token, without the batch dimension, by name."""
        return {name: self._initial[name][0].float() for name in self.state_names}

    def forward(
        self, token: Int[Tensor, " B"], elapsed: Float[Tensor, " B"], *state: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B ..."], ...]:
        """Logits, the state after the token in the order of `state_names`, and the time constants of every layer.

        Args:
            token: Token ids, which must lie inside the vocabulary.
            elapsed: Time from this token to the next, in token time, >= 0; 1 for ordinary text.
            *state: State before the token, in the order of `state_names`.
        """
        missing = {name: first.expand(token.shape[0], *first.shape[1:]) for name, first in self._initial.items()}
        before = LiquidState.from_tensors(missing | dict(zip(self.state_names, state, strict=True)))
        conv_state = before.conv_state or (None,) * len(before.neurons)
        network, after, constants = self.network, [], []
        hidden = network.embed_tokens(token[:, None])
        for layer, layer_state in zip(network.stack(), zip(before.neurons, conv_state, strict=True), strict=True):
            hidden, layer_after, tau = _observed(layer, hidden, layer_state, elapsed[:, None])
            after.append(layer_after)
            constants.append(tau)
        logits = network.lm_head.logits(network.norm(hidden)[:, 0]).float()
        neurons = tuple(n for n, _ in after)
        named = LiquidState(neurons, tuple(c for _, c in after if c is not None)).tensors()
        return logits, *(named[name] for name in self.state_names), *constants


def _observed(
    layer: PlainLayer | LiquidBlock, hidden: Float[Tensor, "B 1 D"], state: LayerState, elapsed: Float[Tensor, "B 1"]
) -> tuple[Float[Tensor, "B 1 D"], LayerState, Float[Tensor, "B N"]]:
    """A layer's output and state after one token, and its time constants then.

    A forward hook captures the cell's input and state; `layer.observe` would compute the token a second time.
    """
    captured: list[tuple[Tensor, Tensor]] = []
    handle = layer.cell.register_forward_hook(lambda _, inputs, outputs: captured.append((inputs[0], outputs[1])))
    try:
        out, after = layer(hidden, state, elapsed, None, None)
    finally:
        handle.remove()
    ((entered, neurons),) = captured
    return out, after, layer.cell.time_constants(entered, neurons[:, None])[:, 0].float()
