"""Output layers: hidden vectors to a distribution over the vocabulary.

Both kinds give `logits` for decoding, `loss` for scoring and `total_loss` for training, so that the loss of a large
vocabulary never needs all its logits.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ltc_textgen.config import ModelConfig
from ltc_textgen.kernels.dispatch import hooked
from ltc_textgen.kernels.matmul import Linear, linear
from ltc_textgen.shapes import Float, Int, Tensor

IGNORED = -100
"""Target that has no loss, as everywhere in PyTorch."""

AT_ONCE = 1 << 22
"""Logits that exist at one time where a loss is all that is wanted: 16 MB, which stay in the cache."""


class FullHead(nn.Module):
    """One softmax over the vocabulary; its matrix may be the embedding's."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.projection = Linear(width, vocabulary)

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Unnormalised log-probabilities of the next token."""
        return self.projection(hidden)

    def loss(self, hidden: Float[Tensor, "*B D"], targets: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Loss of each target in nats, float32; 0 where the target is `IGNORED`."""
        parts = [
            F.cross_entropy(self.logits(rows).float(), aims, reduction="none", ignore_index=IGNORED)
            for rows, aims in self._parts(hidden.flatten(0, -2), targets.flatten())
        ]
        return torch.cat(parts).view_as(targets)

    def total_loss(self, hidden: Float[Tensor, "*B D"], targets: Int[Tensor, "*B"]) -> Float[Tensor, ""]:
        """Sum of `loss`. The logits of a large vocabulary exist a part at a time, in training too."""
        projection, small = self.projection, hidden.numel() // hidden.shape[-1] * self.vocabulary <= AT_ONCE
        ours = type(projection) is Linear and not hooked(projection) and not torch.compiler.is_compiling()
        if small or not ours or not torch.is_grad_enabled():
            return self.loss(hidden, targets).sum()
        return _TotalLoss.apply(hidden.flatten(0, -2), projection.weight, projection.bias, targets.flatten())

    @property
    def vocabulary(self) -> int:
        """Vocabulary size V of the output layer."""
        return self.projection.out_features

    def _parts(self, hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        rows = max(1, AT_ONCE // self.vocabulary)
        return list(zip(hidden.split(rows), targets.split(rows), strict=True))


class _TotalLoss(torch.autograd.Function):
    """Sum of the losses of a full softmax.

    Its gradients are made together with it, part by part: what comes from above is one number, so that they only need
    to be multiplied by it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total, wanted = hidden.new_zeros((), dtype=wide), any(ctx.needs_input_grad)
        gradients = [hidden, weight, bias]
        if wanted:  # those of the parameters are sums over the parts
            gradients = [torch.empty_like(hidden), *(torch.zeros_like(t, dtype=wide) for t in (weight, bias))]
        rows = max(1, AT_ONCE // weight.shape[0])
        half = torch.is_autocast_enabled(hidden.device.type)
        dtype = torch.get_autocast_dtype(hidden.device.type) if half else hidden.dtype
        small = weight.to(dtype)
        for start in range(0, len(targets), rows):
            part, aims = hidden[start : start + rows].to(dtype), targets[start : start + rows]
            logits = linear(part, small, bias.to(dtype)).to(wide)
            norms, kept = torch.logsumexp(logits, -1, keepdim=True), aims != IGNORED
            aims = aims.clamp_min(0)[:, None]
            total += ((norms - logits.gather(1, aims))[:, 0] * kept).sum()
            if not wanted:
                continue
            pull = torch.exp_(logits.sub_(norms))
            pull.scatter_add_(1, aims, pull.new_full((1, 1), -1.0).expand_as(aims))
            pull = pull.mul_(kept[:, None]).to(dtype)
            gradients[0][start : start + rows] = linear(pull, small.t())  # which multiplies by a transpose
            gradients[1] += linear(pull.t(), part.t())
            gradients[2] += pull.sum(0, dtype=wide)
        ctx.save_for_backward(*gradients)
        return total.float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:3]
        return (*(g * pull.to(g.dtype) if n else None for g, n in zip(ctx.saved_tensors, needed, strict=True)), None)


class AdaptiveHead(nn.Module):
    """Adaptive softmax: frequent tokens in a short list, rare ones in clusters with narrower matrices.

    It needs to know which tokens are frequent: `rank_by` takes their counts in the training text. Without, token ids
    are taken to be sorted by frequency already. The vectors of cluster k are narrower by a factor of 4**k.

    Source:
        Grave et al. 2017, arXiv:1609.04309.
    """

    def __init__(self, width: int, vocabulary: int, cutoffs: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(width, vocabulary, list(cutoffs or default_cutoffs(vocabulary)))
        self.register_buffer("rank", torch.arange(vocabulary))
        self.rank: Tensor

    def rank_by(self, counts: Int[Tensor, " V"]) -> None:
        """Sort the vocabulary by frequency. Call before training, never after."""
        order = torch.argsort(counts, descending=True, stable=True)
        self.rank[order] = torch.arange(len(order), device=self.rank.device)

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Log-probabilities of the next token (normalised, which logits may be)."""
        ranked = self.softmax.log_prob(hidden.to(self.softmax.head.weight.dtype).flatten(0, -2))
        return ranked[:, self.rank].view(*hidden.shape[:-1], -1)

    def loss(self, hidden: Float[Tensor, "*B D"], targets: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Loss of each target in nats, float32; 0 where the target is `IGNORED`."""
        flat = targets.flatten()
        kept = flat != IGNORED
        losses = hidden.new_zeros(flat.shape, dtype=torch.float32)
        # Also without any target, so that there is always something to differentiate, as in `FullHead`.
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.flatten(0, -2)[kept].to(self.softmax.head.weight.dtype)
            scored = self.softmax(rows, self.rank[flat[kept]])
        losses = losses.masked_scatter(kept, -scored.output.float())
        return losses.view_as(targets)

    def total_loss(self, hidden: Float[Tensor, "*B D"], targets: Int[Tensor, "*B"]) -> Float[Tensor, ""]:
        """The sum of `loss` over all tokens."""
        return self.loss(hidden, targets).sum()


def default_cutoffs(vocabulary: int) -> list[int]:
    """A short list of an eighth of the vocabulary, at most 2000; a middle cluster up to a third, at most 10 000."""
    first = max(1, min(2000, vocabulary // 8))
    second = max(first + 1, min(10_000, vocabulary // 3))
    return [first, second] if second < vocabulary else [first]


def build_head(settings: ModelConfig) -> FullHead | AdaptiveHead:
    """The output layer that `settings.head` names."""
    if settings.head == "adaptive":
        return AdaptiveHead(settings.hidden_size, settings.vocabulary, settings.adaptive_cutoffs)
    return FullHead(settings.hidden_size, settings.vocabulary)
