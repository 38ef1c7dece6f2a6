"""Liquid time-constant networks as language models: train them on text, and generate text with them.

    from ltc_textgen import LiquidTimeConstantNetwork, load_run, generate

Names are imported when they are first used, so that `import ltc_textgen` and `ltc --help` are quick; type checkers see
them at once. Importing the package registers the network with transformers:
`AutoModelForCausalLM.from_pretrained("runs/book")` works.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ltc_textgen.hf.registration import install

if TYPE_CHECKING:
    from ltc_textgen import analysis, layers
    from ltc_textgen.config import (
        Coupling,
        DataConfig,
        ModelConfig,
        RunConfig,
        SamplingConfig,
        Solver,
        TrainConfig,
    )
    from ltc_textgen.errors import LTCError
    from ltc_textgen.evaluation import evaluate
    from ltc_textgen.generation.generate import generate, generate_stream
    from ltc_textgen.hf.config import LTCConfig
    from ltc_textgen.hf.memory import MemoryLogitsProcessor
    from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
    from ltc_textgen.model.state import LiquidState
    from ltc_textgen.model.text_state import TextState, mix
    from ltc_textgen.runs import load_run, memory_of
    from ltc_textgen.training import train

_MODULES = {
    "Coupling": "config",
    "DataConfig": "config",
    "LTCConfig": "hf.config",
    "LTCError": "errors",
    "LiquidState": "model.state",
    "LiquidTimeConstantNetwork": "hf.modeling",
    "MemoryLogitsProcessor": "hf.memory",
    "ModelConfig": "config",
    "RunConfig": "config",
    "SamplingConfig": "config",
    "Solver": "config",
    "TextState": "model.text_state",
    "TrainConfig": "config",
    "evaluate": "evaluation",
    "generate": "generation.generate",
    "generate_stream": "generation.generate",
    "load_run": "runs",
    "memory_of": "runs",
    "mix": "model.text_state",
    "train": "training",
}
"""Public name -> the module that holds it, below `ltc_textgen`."""

__all__ = [
    "Coupling",
    "DataConfig",
    "LTCConfig",
    "LTCError",
    "LiquidState",
    "LiquidTimeConstantNetwork",
    "MemoryLogitsProcessor",
    "ModelConfig",
    "RunConfig",
    "SamplingConfig",
    "Solver",
    "TextState",
    "TrainConfig",
    "analysis",
    "evaluate",
    "generate",
    "generate_stream",
    "layers",
    "load_run",
    "memory_of",
    "mix",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"ltc_textgen.{_MODULES[name]}"), name)
    if name in ("analysis", "layers"):
        return importlib.import_module(f"ltc_textgen.{name}")
    raise AttributeError(f"module 'ltc_textgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()
