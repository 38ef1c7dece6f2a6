"""Which engines compute a model, by the name that the command line has for them."""

from collections.abc import Sequence
from typing import Literal

from ltc_textgen.errors import UsageError
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.serve.engine import Engine
from ltc_textgen.serve.native_engine import NativeEngine
from ltc_textgen.serve.torch_engine import TorchEngine

EngineName = Literal["auto", "native", "int8", "torch"]


def engines_for(model: LiquidNetwork, name: EngineName, slots: int) -> Sequence[Engine]:
    """Engines of a model, the preferred one first; PyTorch, which takes every option, last.

    Args:
        model: Network, in evaluation mode.
        name: auto takes the native decoder where it can decode the model.
        slots: Most rows at a time.

    Raises:
        UsageError: If the native decoder is asked for and cannot decode this model.
    """
    reference = TorchEngine(model)
    if name == "torch":
        return [reference]
    try:
        return [NativeEngine(model, slots, int8=name == "int8"), reference]
    except UsageError:
        if name != "auto":
            raise
        return [reference]
