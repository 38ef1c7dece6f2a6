"""Networks and texts for the tests of the analysis."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ltc_textgen.analysis import Trace
from ltc_textgen.config import ModelConfig
from ltc_textgen.model.network import LiquidNetwork

TIME = {"steps": 2, "step_size": 0.5}
COUPLINGS: dict[str, dict[str, Any]] = {
    "diagonal": {"coupling": "diagonal", "block": "liquid", "expansion": 2.0, **TIME},
    "plain diagonal": {"coupling": "diagonal", "block": "plain", **TIME},
    "learned start": {"coupling": "diagonal", "block": "liquid", "learned_initial_state": True, **TIME},
    "full": {"coupling": "full", "block": "liquid", **TIME},
    "frozen full": {"coupling": "full", "block": "plain", "adaptive": False, **TIME},
    "synaptic": {"coupling": "synaptic", "block": "plain", **TIME},
    "cfc": {"coupling": "cfc", "block": "liquid", **TIME},
    "pure cfc": {"coupling": "cfc", "block": "plain", "cfc_mode": "pure", **TIME},
}


def network(kind: str = "diagonal", seed: int = 0, **more: Any) -> LiquidNetwork:
    """An untrained network of 11 tokens, 2 layers, width 6."""
    torch.manual_seed(seed)
    return LiquidNetwork(
        ModelConfig(**{"input_size": 11, "hidden_size": 6, "num_layers": 2, **COUPLINGS[kind], **more})
    ).eval()


def made_trace(pieces: list[str], *layers: np.ndarray, tau: np.ndarray | None = None) -> Trace:
    """A trace of states that were not computed by a network."""
    tokens = len(pieces)
    states = tuple(layer.astype(np.float32) for layer in layers)
    taus = tuple(np.ones_like(layer) if tau is None else tau.astype(np.float32) for layer in states)
    zeros = np.zeros(tokens, np.float32)
    return Trace(np.arange(tokens), pieces, zeros, taus, states, zeros + 1, "made")


class Letters(SimpleNamespace):
    """A tokenizer of the first letters of the alphabet."""

    def encode(self, text: str) -> list[int]:
        return ["abcdefghij ".index(letter) for letter in text]

    def stream(self) -> Any:
        return SimpleNamespace(push=lambda index: "abcdefghij "[index], flush=lambda: "")
