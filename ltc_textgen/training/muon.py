"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer.

Muon moves a matrix by the nearest orthogonal one to its momentum, so that every direction that the gradient has seen
gets the same share of a step, not the few that dominate it. On liquid networks it reached a lower loss in the same
steps and learned less by heart (docs/results.md). Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers
in neural networks"; PyTorch has one too, which goes through the matrices one by one and takes several times as long.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ltc_textgen.layers.diagonal import DiagonalCell
from ltc_textgen.shapes import Float, Tensor

ITERATIONS = ((7.9116, -23.0863, 17.0503), (3.5581, -2.7803, 0.5727), (2.7735, -2.2397, 0.5584))
"""a, b, c of each iteration X <- a X + b X X'X + c X (X'X)^2. Together they bring every singular value from [0.01, 1]
to within 0.28 of 1: the largest distance was made as small as it goes, numerically. Smaller values grow 78-fold. Five
iterations of one polynomial, the usual choice, cost more and gave a higher loss."""

MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `orthogonal` set take Muon's step instead. Arguments as those of `torch.optim.AdamW`.

    The matrices of such a group may be stacks: `stacks`, beside `params`, says of how many matrices, one below the
    other, each of them consists.
    """

    def step(self, closure: Any = None) -> Any:
        """Take one step with the gradients that are there, or that `closure` makes; returns what that returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        groups = [group for group in self.param_groups if group.get("orthogonal")]
        matrices = [parameter for group in groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in matrices]
        for parameter in matrices:
            parameter.grad = None  # AdamW passes by what has no gradient
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
        if isinstance(module, DiagonalCell):
            found[id(module.input.weight)] = 2  # W_e and W_i
        elif isinstance(module, nn.Linear):
            found.setdefault(id(module.weight), 1)
        elif isinstance(weight := getattr(module, "recurrent_weight", None), nn.Parameter) and weight.ndim == 2:
            found[id(weight)] = 1
    return found
