"""Who takes part in `language.py`, with which settings, and how widths are chosen for an equal number of parameters.

The settings of the peers are good ones, not defaults: their learning rates come from `--tune` (what was tried is in the
results file and in docs/results.md), their regularisation from the papers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rivals import Awd, Drop, Gpt2, Liquid, MinGruCell, Rival, exchange_cells
from trial import Plan

from ltc_textgen.config import ModelConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.presets.recipes import Recipe, assignments

BLOCK: dict[str, Any] = {"block": "liquid", "coupling": "diagonal", "steps": 1, "step_size": 1.0}
CONTEXT = 64
LARGE_VOCABULARY = 1000
"""From here on a corpus is one of words: tied matrices, dropout."""


def dropouts(share: float) -> dict[str, Any]:
    """The same dropout in the embedding and in the layers."""
    return {"dropout": share, "embedding_dropout": share}


@dataclass(frozen=True)
class Ours:
    """A model of this package, trained by its own command: a preset, or the settings that `--set` takes."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None

    def recipe(self) -> Recipe:
        """The settings by section, as a recipe file has them."""
        return assignments(f"{key}={json.dumps(value)}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Peer:
    """A model that the plain loop of `trial` trains.

    Args:
        make: From vocabulary and width to a model.
        width: Where no number of parameters is asked for.
        plan: How it is trained.
        multiple: Widths are multiples of this.
    """

    make: Callable[[int, int], Rival]
    width: int
    plan: Plan
    multiple: int = 8


def peers(vocabulary: int) -> Mapping[str, Peer]:
    """The peers, set for characters or for words by the size of the vocabulary."""
    return word_peers() if vocabulary >= LARGE_VOCABULARY else character_peers()


def character_peers() -> Mapping[str, Peer]:
    def awd(kind: str) -> Callable[[int, int], Rival]:
        return lambda vocabulary, width: Awd(kind, vocabulary, width, width, 2, tied=False)

    def min_gru(vocabulary: int, width: int) -> Rival:
        settings = {**BLOCK, "hidden_size": width, "num_layers": 4, "expansion": 3.0}
        return exchange_cells(Liquid.of(vocabulary, **settings), MinGruCell)

    nano = Plan(1e-3, batch=12, length=CONTEXT, weight_decay=0.1, beta2=0.99, warmup=0.05, floor=0.1)
    return {
        "lstm": Peer(awd("lstm"), 256, Plan(6e-3, batch=16, length=64, weight_decay=0.01)),
        "gru": Peer(awd("gru"), 256, Plan(4e-3, batch=16, length=64, weight_decay=0.01)),
        "mingru": Peer(min_gru, 128, Plan(6e-3, batch=12, length=64)),
        "gpt2": Peer(lambda v, width: Gpt2(v, CONTEXT, width, 4, 4), 128, nano),
    }


def word_peers() -> Mapping[str, Peer]:
    # In a minute of training, one layer with light dropout and a high rate beats the two layers, the heavy dropout and
    # the rate of the paper by far (5.6 against 6.7 nats).
    drop = Drop(input=0.2, hidden=0.2, output=0.2)

    def awd(kind: str) -> Callable[[int, int], Rival]:
        return lambda vocabulary, width: Awd(kind, vocabulary, width, width, 1, drop)

    def min_gru(vocabulary: int, width: int) -> Rival:
        settings = {**BLOCK, "hidden_size": width, "num_layers": 2, "tie_embeddings": True, **dropouts(0.4)}
        return exchange_cells(Liquid.of(vocabulary, **settings), MinGruCell)

    def gpt2(vocabulary: int, width: int) -> Rival:
        return Gpt2(vocabulary, CONTEXT, width, 2, 4, dropout=0.3)

    return {
        "lstm": Peer(awd("lstm"), 176, Plan(1e-2, batch=16, length=32, weight_decay=0.02)),
        "gru": Peer(awd("gru"), 176, Plan(1e-2, batch=16, length=32, weight_decay=0.02)),
        "mingru": Peer(min_gru, 144, Plan(4e-3, batch=16, length=32)),
        "gpt2": Peer(gpt2, 144, Plan(4e-3, batch=16, length=CONTEXT, beta2=0.99, floor=0.1)),
    }


def ours(vocabulary: int) -> Mapping[str, Ours]:
    """The networks of this package: the recipe for language, and the other couplings as plain layers."""
    large = vocabulary >= LARGE_VOCABULARY
    plain = {"block": "plain", "num_layers": 2, "tie_embeddings": large, **dropouts(0.3 if large else 0.0)}
    plain |= {"learning_rate": 4e-3, "batch_size": 16, "sequence_length": 32 if large else 64}
    return {
        "liquid": Ours(WORDS) if large else Ours(preset="char-fast"),
        "diagonal": Ours({**plain, "coupling": "diagonal", "steps": 1, "step_size": 1.0, "hidden_size": 256}),
        "full": Ours({**plain, "coupling": "full", "hidden_size": 256}),
        # One synapse for each pair of neurons: narrow, and few tokens at once.
        "synaptic": Ours({**plain, "coupling": "synaptic", "hidden_size": 48, "num_layers": 1, "learning_rate": 1e-2}),
        "cfc": Ours({**plain, "coupling": "cfc", "hidden_size": 256}),
    }


WORDS: dict[str, Any] = {
    **BLOCK,
    "hidden_size": 160,
    "num_layers": 2,
    "expansion": 2.0,
    "tie_embeddings": True,
    **dropouts(0.3),
    "learned_start": True,
    "batch_size": 16,
    "sequence_length": 32,
    "restart": 0.05,
    "optimizer": "muon",
    "muon_learning_rate": 0.02,
    "learning_rate": 4e-3,
}
"""The recipe for words in two or three million parameters, most of which are the embedding."""


def closest_width(count: Callable[[int], int], target: int, multiple: int, most: int = 4096) -> int:
    """The multiple whose number of parameters is nearest to `target`; `count` grows with the width."""
    low, high = 1, most // multiple
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle * multiple) >= target else (middle + 1, high)
    below = max(1, low - 1) * multiple
    return min((below, low * multiple), key=lambda width: abs(count(width) - target))


def count_of(make: Callable[[], torch.nn.Module]) -> int:
    """Parameters of a model, made without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def liquid_width(model: Mapping[str, Any], vocabulary: int, target: int) -> int:
    """`hidden_size` with which a network of these settings has about `target` parameters."""

    def count(width: int) -> int:
        settings = ModelConfig.parse({**model, "hidden_size": width, "input_size": vocabulary})
        return count_of(lambda: LiquidTimeConstantNetwork.from_settings(settings))

    return closest_width(count, target, 8)


def peer_width(peer: Peer, vocabulary: int, target: int) -> int:
    """Width with which a peer has about `target` parameters."""
    return closest_width(lambda width: count_of(lambda: peer.make(vocabulary, width)), target, peer.multiple)
