"""AdamW and Muon as one optimizer, weight decay by parameter, and the learning rate schedule.

**Weight decay** applies only to the matrices that mix features: the weights of linear layers and embeddings, and the
recurrent matrices of the layers. Everything else keeps its value: biases, norms, convolutions (one short filter per
channel) and the physics of the neurons (C, g_leak, E, tau, the synapses' mu and sigma), whose zero has no special
meaning. Some of the physics is stored as a matrix, so the number of dimensions alone does not decide.

**Muon** updates the matrices of the layers, AdamW everything else. Muon moves a matrix by the nearest orthogonal matrix
to its momentum, so that every direction of the gradient gets an equal step. On liquid networks it reached a
lower loss in the same steps and overfitted less (docs/results.md). Source: Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks"; PyTorch's own processes the matrices one by one and takes several times as long.

**Schedule**: linear warm-up, then half a cosine.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ltc_textgen.config import TrainConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.layers.diagonal import DiagonalLTC
from ltc_textgen.shapes import Float, Tensor

ITERATIONS = ((7.9116, -23.0863, 17.0503), (3.5581, -2.7803, 0.5727), (2.7735, -2.2397, 0.5584))
"""a, b, c of each iteration X <- a X + b X X'X + c X (X'X)^2. Together they bring every singular value from [0.01, 1]
to within 0.28 of 1: the coefficients minimise the largest distance, numerically. Smaller values grow 78-fold. Five
iterations of one polynomial, the usual choice, cost more and gave a higher loss."""

MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `orthogonal` set take Muon's step instead. Arguments as those of `torch.optim.AdamW`.

    The matrices of such a group may be stacks: `stacks`, alongside `params`, is the number of matrices that each
    parameter holds one below the other.
    """

    def step(self, closure: Any = None) -> Any:
        """Take one step with the gradients, after `closure` if given; returns what that returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        groups = [group for group in self.param_groups if group.get("orthogonal")]
        matrices = [parameter for group in groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in matrices]
        for parameter in matrices:
            parameter.grad = None  # AdamW skips what has no gradient
        try:
            super().step()
        finally:
            for parameter, gradient in zip(matrices, gradients, strict=True):
                parameter.grad = gradient
        for group in groups:
            self._orthogonal_step(group)
        return result

    @torch.no_grad()
    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        chosen = [(p, stack) for p, stack in zip(group["params"], group["stacks"], strict=True) if p.grad is not None]
        moved = [p for p, _ in chosen]
        for parameter in moved:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[p]["momentum"] for p in moved]
        gradients = [p.grad for p in moved]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov
        torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
        alike = defaultdict(list)
        for (parameter, stack), direction in zip(chosen, ahead, strict=True):
            for target, source in zip(parameter.chunk(stack), direction.chunk(stack), strict=True):
                tall = source.shape[0] >= source.shape[1]
                pair = (target, source) if tall else (target.t(), source.t())
                alike[pair[1].shape].append(pair)
        for (rows, columns), pairs in alike.items():
            targets, sources = zip(*pairs, strict=True)
            steps = orthogonalised(torch.stack(sources)).unbind()
            torch._foreach_add_(list(targets), list(steps), alpha=-group["lr"] * math.sqrt(rows / columns))


def orthogonalised(matrices: Float[Tensor, "K rows columns"]) -> Float[Tensor, "K rows columns"]:
    """About the nearest matrices with orthonormal columns: singular values of about 1 in place of those they have.

    Args:
        matrices: K of them, at least as tall as wide.
    """
    dtype = torch.bfloat16 if _has_bfloat16(matrices.device) else torch.float32
    X = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)).to(dtype)
    for a, b, c in ITERATIONS:
        gram = X.mT @ X
        X = torch.baddbmm(X, X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
    return X.to(matrices.dtype)


def _has_bfloat16(device: torch.device) -> bool:
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def matrices_of(layers: nn.Module) -> dict[int, int]:
    """Which parameters are matrices that mix features, by identity, and of how many such matrices each is a stack."""
    found: dict[int, int] = {}
    for module in layers.modules():
        if isinstance(module, DiagonalLTC):
            found[id(module.input.weight)] = 2  # W_e and W_i
        elif isinstance(module, nn.Linear):
            found.setdefault(id(module.weight), 1)
        elif isinstance(weight := getattr(module, "recurrent_weight", None), nn.Parameter) and weight.ndim == 2:
            found[id(weight)] = 1
    return found


RECURRENT_MATRICES = frozenset({"recurrent_weight"})
"""Names of the layers' parameters that mix states as a linear layer mixes features."""


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
        Groups for a torch optimizer, with their `names` alongside their `params`, without empty ones.
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

    Every group has its `peak`, the learning rate that the schedule scales at every step.

    Raises:
        UsageError: If Muon finds no matrices, or with fp16.
    """
    groups = parameter_groups(model, config.weight_decay)
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    if config.optimizer == "muon":
        if config.mixed_precision == "fp16":
            raise UsageError("optimizer = muon goes with mixed_precision = no or bf16, not fp16")
        groups = _with_muon(groups, matrices_of(model.get_submodule("layers")), config.muon_learning_rate)
    for group in groups:
        group.setdefault("peak", config.learning_rate)
    return kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def _with_muon(groups: list[dict], stacks: dict[int, int], peak: float) -> list[dict]:
    """The groups, with the matrices in groups of their own for Muon."""
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
        raise UsageError("optimizer = muon: this model's layers have no matrices for it; use adamw")
    return result


def rate_factor(progress: float, warmup_ratio: float, floor: float) -> float:
    """Learning rate as a fraction of its peak.

    Args:
        progress: Fraction of the run that is done; clamped to 0 to 1.
        warmup_ratio: Fraction of the run in which the rate rises, in [0, 1).
        floor: Rate at the end, as a fraction of the peak, in [0, 1].

    Returns:
        A factor in (0, 1]. The very first step of a warm-up gets a hundredth of the peak, not zero, so that it
        moves something.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup_ratio:
        return max(progress / warmup_ratio, 0.01)
    decay = (progress - warmup_ratio) / (1.0 - warmup_ratio)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * decay))
