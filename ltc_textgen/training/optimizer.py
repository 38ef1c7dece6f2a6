"""AdamW, and the rule that says which parameters decay.

Only the matrices that mix features decay: the weights of linear layers and embeddings, and the recurrent matrices of
the cells. Everything else keeps its value: biases, norms, convolutions (one short filter per channel) and the physics
of the neurons (C, g_leak, E, tau, the synapses' mu and sigma), whose zero has no special meaning. Some of the physics
is stored as a matrix, so the number of dimensions alone does not tell.
"""

import torch
from torch import nn

from ltc_textgen.config import TrainConfig

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
    """AdamW over the groups above, as one fused update. Its learning rate is set anew at every step (`schedule`)."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
