"""AdamW or Muon, and the rule that says which parameters decay.

Only the matrices that mix features decay: the weights of linear layers and embeddings, and the recurrent matrices of
the cells. Everything else keeps its value: biases, norms, convolutions (one short filter per channel) and the physics
of the neurons (C, g_leak, E, tau, the synapses' mu and sigma), whose zero has no special meaning. Some of the physics
is stored as a matrix, so the number of dimensions alone does not tell.
"""

import torch
from torch import nn

from ltc_textgen.config import TrainConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.training.muon import Muon, matrices_of

RECURRENT_MATRICES = frozenset({"recurrent_weight"})
"""Names of the cells' parameters that mix states as a linear layer mixes features."""


def decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to the parameter `name` that `module` itself owns."""
    if parameter.ndim != 2:
        return False
    if isinstance(module, nn.Linear | nn.Embedding):
        return name == "weight"
    return name in RECURRENT_MATRICES


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters into those that decay and those that do not; a shared one counts once.

    Returns:
        Groups for a torch optimizer, with their `names` beside their `params`, without empty ones.
    """
    decaying: dict[int, bool] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            decaying[id(parameter)] = decaying.get(id(parameter), False) or decays(module, name, parameter)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    for decay in (True, False):
        chosen = [(name, p) for name, p in trainable if decaying[id(p)] is decay]
        if chosen:
            names, params = zip(*chosen, strict=True)
            groups.append(
                {"params": list(params), "names": list(names), "weight_decay": weight_decay if decay else 0.0}
            )
    return groups


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """The optimizer that the settings name, over the groups above. AdamW's part of a step is one fused update.

    Every group has its `peak`, the learning rate of which the schedule sets a share at every step.

    Raises:
        UsageError: If Muon is to move a model without matrices, or in half precision.
    """
    groups = parameter_groups(model, config.weight_decay)
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    if config.optimizer == "muon":
        if config.precision == "fp16":
            raise UsageError("optimizer = muon goes with precision = no or bf16, not fp16")
        groups = _with_muon(groups, matrices_of(model.layers), config.muon_learning_rate)  # type: ignore[arg-type]
    for group in groups:
        group.setdefault("peak", config.learning_rate)
    return kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def _with_muon(groups: list[dict], stacks: dict[int, int], peak: float) -> list[dict]:
    """The groups with the matrices taken out of them into groups of Muon's."""
    result = []
    for group in groups:
        for orthogonal in (True, False):
            chosen = [
                (n, p) for n, p in zip(group["names"], group["params"], strict=True) if (id(p) in stacks) is orthogonal
            ]
            if not chosen:
                continue
            names, params = zip(*chosen, strict=True)
            part = group | {"names": list(names), "params": list(params)}
            if orthogonal:
                part |= {"orthogonal": True, "peak": peak, "stacks": [stacks[id(p)] for p in params]}
            result.append(part)
    if not any(group.get("orthogonal") for group in result):
        raise UsageError("optimizer = muon: this model's layers have no matrix that it could move; use adamw")
    return result
