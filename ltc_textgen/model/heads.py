"""Output layers: hidden vectors to a distribution over the vocabulary.

Both kinds give `logits` for decoding, `loss` for scoring and `total_loss` for training, so that the loss of a large
vocabulary never needs all its logits at once.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ltc_textgen.config import ModelConfig
from ltc_textgen.kernels.dispatch import Access, access, changed, observed, record
from ltc_textgen.kernels.head_loss import IGNORED as IGNORED
from ltc_textgen.kernels.head_loss import chunked_loss, rows_at_once
from ltc_textgen.kernels.matmul import Linear
from ltc_textgen.shapes import Float, Int, Tensor


@record
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
            F.cross_entropy(self.logits(rows).float(), chosen, reduction="none", ignore_index=IGNORED)
            for rows, chosen in self._chunks(hidden.flatten(0, -2), targets.flatten())
        ]
        return torch.cat(parts).view_as(targets)

    def total_loss(self, hidden: Float[Tensor, "*B D"], targets: Int[Tensor, "*B"]) -> Float[Tensor, ""]:
        """Sum of `loss`. The logits of a large vocabulary exist a chunk at a time, in training too."""
        projection, rows = self.projection, hidden.numel() // hidden.shape[-1]
        if rows <= rows_at_once(self.vocabulary) or not torch.is_grad_enabled() or self._is_changed():
            return self.loss(hidden, targets).sum()
        return chunked_loss(hidden.flatten(0, -2), projection.weight, projection.bias, targets.flatten())

    def _is_changed(self) -> bool:
        """Whether `loss` may compute something else than `chunked_loss`, or someone observes it."""
        projection = self.projection
        if changed(self, FullHead, "logits", "loss") or observed(projection, Linear) or projection.bias is None:
            return True
        return access(projection.weight, projection.bias) != Access.direct

    @property
    def vocabulary(self) -> int:
        """Vocabulary size V of the output layer."""
        return self.projection.out_features

    def _chunks(self, hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        rows = rows_at_once(self.vocabulary)
        return list(zip(hidden.split(rows), targets.split(rows), strict=True))


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
