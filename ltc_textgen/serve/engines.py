"""Which engines compute a model, by the name that the command line has for them."""

from collections.abc import Sequence
from typing import Literal

from ltc_textgen.errors import UsageError
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.serve.engine import Engine
from ltc_textgen.serve.torch_engine import TorchEngine

EngineName = Literal["auto", "native", "int8", "torch"]


def engines_for(model: LiquidNetwork, name: EngineName) -> Sequence[Engine]:
    """Engines of a model, the preferred one first; PyTorch, which takes every option, last.

    Raises:
        UsageError: If the native decoder is asked for and cannot decode this model.
    """
    if name in ("native", "int8"):
        raise UsageError(f"--engine {name}: the server has no native engine yet; use torch")
    return [TorchEngine(model)]
