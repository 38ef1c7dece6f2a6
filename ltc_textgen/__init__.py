"""Liquid time-constant networks as language models: train them on your own text, and write text with them.

    from ltc_textgen import LiquidTimeConstantNetwork, load_run, generate

Names load when they are first used, so that `import ltc_textgen` and `ltc --help` are quick. Importing this package
registers the network with transformers: `AutoModelForCausalLM.from_pretrained("runs/book")` works.
"""

import importlib
from typing import Any

from ltc_textgen.registration import install

_HOME = {
    "LiquidTimeConstantNetwork": "model",
    "LTCConfig": "huggingface",
    "LiquidState": "state",
    "TextState": "states",
    "mix": "states",
    "ModelConfig": "config",
    "DataConfig": "config",
    "TrainConfig": "config",
    "RunConfig": "config",
    "SamplingConfig": "config",
    "Solver": "config",
    "Coupling": "config",
    "LTCError": "errors",
    "load_run": "artifacts",
    "generate": "generation",
    "generate_stream": "generation",
    "evaluate": "evaluation",
    "train": "training",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ltc_textgen.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ltc_textgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()
