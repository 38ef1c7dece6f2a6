"""Training: from settings to a run directory, with runs that survive being stopped (see `loop`).

The names load when they are first used: `loop` brings accelerate and transformers with it, its helpers do not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltc_textgen.training.loop import TrainResult, train
    from ltc_textgen.training.report import Reporter, make_reporter

__all__ = ["Reporter", "TrainResult", "make_reporter", "train"]

_HOME = {"Reporter": "report", "TrainResult": "loop", "make_reporter": "report", "train": "loop"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ltc_textgen.training.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ltc_textgen.training' has no attribute {name!r}")
