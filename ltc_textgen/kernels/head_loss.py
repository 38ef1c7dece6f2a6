"""The loss of a full softmax, a chunk of rows at a time: the logits of a large vocabulary never exist all at once.

Gradients of a chunk are computed together with its loss. The gradient of the result is one number, so that in the
backward pass they only need to be multiplied by it. Runs on every device.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional as F

from ltc_textgen.kernels.autograd import Direct, Kernel, Optional, wants_gradient
from ltc_textgen.kernels.matmul import linear
from ltc_textgen.shapes import Float, Int, Tensor

IGNORED = -100
"""Target that has no loss, as everywhere in PyTorch."""

AT_ONCE = 1 << 22
"""Logits that exist at one time where a loss is all that is wanted: 16 MB, which stay in the cache."""


def rows_at_once(vocabulary: int) -> int:
    """Rows of a chunk."""
    return max(1, AT_ONCE // vocabulary)


def chunked_loss(
    hidden: Float[Tensor, "M D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"], targets: Int[Tensor, " M"]
) -> Float[Tensor, ""]:
    """Sum of the cross-entropies of hidden W^T + b, in nats.

    Args:
        hidden: Vectors.
        weight: W.
        bias: b.
        targets: Classes; `IGNORED` has no loss.

    Returns:
        The sum, float32. Under autocast products are taken in its dtype, the rest in float32.
    """
    device = hidden.device.type
    half = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if half else hidden.dtype
    if not wants_gradient(hidden, weight, bias):
        return _forward(dtype, hidden, weight, bias, targets, keep=False)[0]
    return Direct.apply(
        Kernel(partial(_forward, dtype), _backward, partial(_reference, dtype)), hidden, weight, bias, targets
    )


def _forward(
    dtype: torch.dtype, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, keep: bool = True
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss, and its gradients of hidden, weight and bias."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total, found = hidden.new_zeros((), dtype=wide), list[Tensor]()
    if keep:  # those of the parameters are sums over the chunks
        found = [torch.empty_like(hidden), *(torch.zeros_like(t, dtype=wide) for t in (weight, bias))]
    rows, small = rows_at_once(weight.shape[0]), weight.to(dtype)
    for start in range(0, len(targets), rows):
        chunk, chosen = hidden[start : start + rows].to(dtype), targets[start : start + rows]
        logits = linear(chunk, small, bias.to(dtype)).to(wide)
        norms, kept = torch.logsumexp(logits, -1, keepdim=True), chosen != IGNORED
        chosen = chosen.clamp_min(0)[:, None]
        total += ((norms - logits.gather(1, chosen))[:, 0] * kept).sum()
        if not keep:
            continue
        gradient = torch.exp_(logits.sub_(norms))
        gradient.scatter_add_(1, chosen, gradient.new_full((1, 1), -1.0).expand_as(chosen))
        gradient = gradient.mul_(kept[:, None]).to(dtype)
        found[0][start : start + rows] = linear(gradient, small.t())  # which multiplies by a transpose
        found[1].add_(linear(gradient.t(), chunk.t()))
        found[2].add_(gradient.sum(0, dtype=wide))
    return total.float(), tuple(found)


def _backward(
    needed: Sequence[bool], gradients: Sequence[Tensor], _: Sequence[Tensor], kept: Sequence[Tensor]
) -> tuple[Optional, ...]:
    (gradient,) = gradients
    return (*(g * gradient.to(g.dtype) if n else None for g, n in zip(kept, needed, strict=False)), None)


def _reference(dtype: torch.dtype, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The same with all logits at once."""
    logits = F.linear(hidden.to(dtype), weight.to(dtype), bias.to(dtype))
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), targets, reduction="sum", ignore_index=IGNORED).float()
