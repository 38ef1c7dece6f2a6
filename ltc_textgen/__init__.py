"""Liquid time-constant networks as language models: train them on your own text, and write text with them.

    from ltc_textgen import LiquidTimeConstantNetwork, load_run, generate

Names load when they are first used, so that `import ltc_textgen` and `ltc --help` are quick. Importing this package
registers the network with transformers: `AutoModelForCausalLM.from_pretrained("runs/book")` works.
"""

import importlib
from typing import Any

from ltc_textgen.hf.registration import install

_HOME = {
    "LiquidTimeConstantNetwork": "ltc_textgen.hf.modeling",
    "LTCConfig": "ltc_textgen.hf.config",
    "LiquidState": "ltc_textgen.model.state",
    "TextState": "ltc_textgen.model.text_state",
    "mix": "ltc_textgen.model.text_state",
    "ModelConfig": "ltc_textgen.config",
    "DataConfig": "ltc_textgen.config",
    "TrainConfig": "ltc_textgen.config",
    "RunConfig": "ltc_textgen.config",
    "SamplingConfig": "ltc_textgen.config",
    "Solver": "ltc_textgen.config",
    "Coupling": "ltc_textgen.config",
    "LTCError": "ltc_textgen.errors",
    "load_run": "ltc_textgen.runs",
    "generate": "ltc_textgen.generation",
    "generate_stream": "ltc_textgen.generation",
    "evaluate": "ltc_textgen.evaluation",
    "train": "ltc_textgen.training",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ltc_textgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()
