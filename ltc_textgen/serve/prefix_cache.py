"""States of prompts at multiples of `SLICE` tokens, so that a prompt that begins like an earlier one is read faster.

A cold read passes through the same states, since it reads slice by slice from the same start: what is written after a
cached prompt is equal to the bit.
"""

import hashlib
from collections import OrderedDict

from ltc_textgen.model.state import LiquidState
from ltc_textgen.serve.engine import SLICE, Context


def state_bytes(state: LiquidState) -> int:
    """Bytes that the numbers of a state take."""
    return sum(tensor.nbytes for tensor in (*state.neurons, *state.conv_state))


class PrefixCache:
    """Least recently used states, within a budget. Used by the engine thread alone.

    Args:
        budget: Bytes of all states together; 0 keeps none.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self.bytes = budget, 0
        self._states: OrderedDict[bytes, LiquidState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def keep(self, keys: list[bytes], context: Context) -> None:
        """Keep the state of a context that stands at the end of a slice."""
        if context.at == 0 or context.at % SLICE:
            return
        key, size = keys[context.at // SLICE - 1], state_bytes(context.state)
        if key not in self._states and size <= self._budget:
            self._states[key] = context.state
            self.bytes += size
        while self.bytes > self._budget:
            self.bytes -= state_bytes(self._states.popitem(last=False)[1])

    def restore(self, keys: list[bytes], context: Context) -> int:
        """Advance a context to the longest prefix that is known, and return its length in tokens."""
        for count in range(len(keys), 0, -1):
            if keys[count - 1] in self._states:
                self._states.move_to_end(keys[count - 1])
                context.state, context.at = self._states[keys[count - 1]], count * SLICE
                return context.at
        return 0


def prefix_keys(base: str, context: Context) -> list[bytes]:
    """Names of the states after each whole slice of a prompt; equal prefixes after the same base have equal names.

    Args:
        base: Identifies the state before the prompt, the model and the engine.
        context: A prompt of which nothing was read.
    """
    key, keys = hashlib.sha256(base.encode()).digest(), []
    for end in range(SLICE, len(context.ids), SLICE):
        key = hashlib.sha256(key + context.ids[end - SLICE : end].tobytes()).digest()
        keys.append(key)
    return keys
