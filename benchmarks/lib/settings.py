"""The models that `language.py` compares, their settings, and the choice of widths for an equal parameter count.

The baselines are tuned: their learning rates come from `--tune` (docs/results.md lists what was tried), their
regularisation from the papers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lib.models import Awd, Drop, Gpt2, LanguageModel
from lib.training import Plan
from ltc_textgen.config import ModelConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.presets.recipes import Recipe, assignments

BLOCK: dict[str, Any] = {"block": "liquid", "coupling": "diagonal", "steps": 1, "step_size": 1.0}
CONTEXT = 64
LARGE_VOCABULARY = 1000
"""Vocabularies of at least this size are word-level: tied weights, dropout."""


@dataclass(frozen=True)
class Ours:
    """A network of this package, trained by `ltc train`: a preset, or settings as of `--set`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None

    def recipe(self) -> Recipe:
        """The settings by section, as in a recipe file."""
        return assignments(f"{key}={json.dumps(value)}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Baseline:
    """A model that `lib.training.fit` trains.

    Args:
        make: Builds the model from vocabulary size and width.
        width: Used unless --parameters is given.
        plan: Hyperparameters.
        multiple: Widths are multiples of this.
    """

    make: Callable[[int, int], LanguageModel]
    width: int
    plan: Plan
    multiple: int = 8


def baselines(vocabulary: int) -> Mapping[str, Baseline]:
    """The baselines with their settings for characters or for words, decided by the vocabulary size."""
    return word_baselines() if vocabulary >= LARGE_VOCABULARY else character_baselines()


def character_baselines() -> Mapping[str, Baseline]:
    def lstm(vocabulary: int, width: int) -> LanguageModel:
        return Awd("lstm", vocabulary, width, width, 2, tied=False)

    nano = Plan(1e-3, batch=12, length=CONTEXT, weight_decay=0.1, beta2=0.99, warmup=0.05, floor=0.1)
    return {
        "lstm": Baseline(lstm, 256, Plan(6e-3, batch=16, length=64, weight_decay=0.01)),
        "gpt2": Baseline(lambda v, width: Gpt2(v, CONTEXT, width, 4, 4), 128, nano),
    }


def word_baselines() -> Mapping[str, Baseline]:
    # In one minute of training, one layer with light dropout and a high learning rate is far better (5.6 against 6.7
    # nats) than the paper's two layers, heavy dropout and learning rate.
    drop = Drop(input=0.2, hidden=0.2, output=0.2)

    def lstm(vocabulary: int, width: int) -> LanguageModel:
        return Awd("lstm", vocabulary, width, width, 1, drop)

    def gpt2(vocabulary: int, width: int) -> LanguageModel:
        return Gpt2(vocabulary, CONTEXT, width, 2, 4, dropout=0.3)

    return {
        "lstm": Baseline(lstm, 176, Plan(1e-2, batch=16, length=32, weight_decay=0.02)),
        "gpt2": Baseline(gpt2, 144, Plan(4e-3, batch=16, length=CONTEXT, beta2=0.99, floor=0.1)),
    }


def ours(vocabulary: int) -> Ours:
    """The recipe of this package for characters or for words."""
    return Ours(WORDS) if vocabulary >= LARGE_VOCABULARY else Ours(preset="char-fast")


WORDS: dict[str, Any] = {
    **BLOCK,
    "hidden_size": 160,
    "num_layers": 2,
    "expansion": 2.0,
    "tie_embeddings": True,
    "dropout": 0.3,
    "embedding_dropout": 0.3,
    "learned_initial_state": True,
    "batch_size": 16,
    "sequence_length": 32,
    "state_reset_prob": 0.05,
    "optimizer": "muon",
    "muon_learning_rate": 0.02,
    "learning_rate": 4e-3,
}
"""For words, at two or three million parameters, most of them in the embedding."""


def closest_width(count: Callable[[int], int], target: int, multiple: int, most: int = 4096) -> int:
    """The multiple whose parameter count is nearest to `target`; `count` increases with the width."""
    low, high = 1, most // multiple
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle * multiple) >= target else (middle + 1, high)
    below = max(1, low - 1) * multiple
    return min((below, low * multiple), key=lambda width: abs(count(width) - target))


def count_of(make: Callable[[], torch.nn.Module]) -> int:
    """Parameter count of a model, built on the meta device."""
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def liquid_width(model: Mapping[str, Any], vocabulary: int, target: int) -> int:
    """The `hidden_size` that gives a network with these settings about `target` parameters."""

    def count(width: int) -> int:
        settings = ModelConfig.parse({**model, "hidden_size": width, "input_size": vocabulary})
        return count_of(lambda: LiquidTimeConstantNetwork.from_settings(settings))

    return closest_width(count, target, 8)


def baseline_width(entry: Baseline, vocabulary: int, target: int) -> int:
    """The width that gives a baseline about `target` parameters."""
    return closest_width(lambda width: count_of(lambda: entry.make(vocabulary, width)), target, entry.multiple)
