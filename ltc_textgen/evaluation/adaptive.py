"""Reading that adapts to the text: dynamic evaluation and a continuous cache. The model itself never changes.

**Dynamic evaluation.** A copy of the model reads the text in segments. A segment is scored first, and then the copy
learns from it, so that what is scored depends on earlier text only. With the gradient g of a segment's mean loss, its
mean square s over the segments so far, and the trained weights w0, every weight w becomes

    w - learning_rate g / (sqrt(s) + m) + min(1, decay sqrt(s) / m) (w0 - w)

where m is the mean of sqrt(s) over all weights: without it the rows of rare tokens, whose s is next to nothing, would
move as far as all others. Krause et al. measure s on the training text beforehand; here it is measured on
what has been read, since a run directory can be evaluated where its training text is not.

**Continuous cache.** The cache holds the last `size` hidden vectors h_i and the token x_(i+1) that followed each. It
predicts the tokens that followed similar hidden vectors,

    p_cache(x) = sum_i [x_(i+1) = x] exp(theta cos(h, h_i)) / sum_i exp(theta cos(h, h_i))
    p(x)       = (1 - lambda) p_model(x) + lambda p_cache(x)

and is empty at the first token, where p = p_model. The cosine in place of the paper's product lets one theta serve
models of any width. Only probabilities are mixed, so any output layer will do.

Sources: Krause et al. 2018, arXiv:1709.07432; Grave et al. 2017, arXiv:1612.04426.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ltc_textgen.config import CacheConfig, DynamicConfig
from ltc_textgen.data.batches import release_pages
from ltc_textgen.errors import DataError, LTCError
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import CHUNK, LiquidNetwork, read_chunks
from ltc_textgen.shapes import Float, Int, Tensor

EPSILON = 1e-12
"""Against a division by zero, for gradients that are all zero."""

SIMILARITIES = 2**22
"""Pairs of a token and a place in the cache that are compared at once."""


@dataclass(frozen=True)
class Adapted:
    """Sums of -ln p over a text, in nats.

    Args:
        own: By the network alone, which learned as it read if that was asked for.
        mixed: With the cache; the same as `own` without one.
        tokens: Tokens scored.
    """

    own: float
    mixed: float
    tokens: int


def score_adaptively(
    model: LiquidNetwork,
    tokens: np.ndarray,
    dynamic: DynamicConfig | None = None,
    cache: CacheConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Adapted:
    """Score a stream of tokens with carried state, adapting weights or a cache to it.

    Args:
        model: Network, in any mode; neither its weights nor its gradients are touched.
        tokens: Token ids, (T,), any integers, T >= 2; the first is context alone.
        dynamic: Settings of dynamic evaluation; None: weights do not change.
        cache: Settings of the cache; None: no cache.
        progress: Called with the tokens scored so far and all that will be.

    Raises:
        DataError: If there are fewer than 2 tokens.
        LTCError: If dynamic evaluation diverges.
    """
    pairs = len(tokens) - 1
    if pairs < 1:
        raise DataError(f"expected at least 2 tokens to score, got {len(tokens)}")
    with torch.inference_mode(False), torch.set_grad_enabled(dynamic is not None):
        learner = Learner(model, dynamic) if dynamic else None
        memory = ContinuousCache(cache) if cache else None
        with evaluating(learner.model if learner else model):
            return _read(learner.model if learner else model, tokens, learner, memory, progress)


def _read(
    reader: LiquidNetwork,
    tokens: np.ndarray,
    learner: "Learner | None",
    memory: "ContinuousCache | None",
    progress: Callable[[int, int], None] | None,
) -> Adapted:
    pairs, step = len(tokens) - 1, learner.config.segment if learner else CHUNK
    own, mixed = 0.0, 0.0
    segments = zip(range(0, pairs, step), read_chunks(reader, tokens[None, :-1], chunk=step), strict=True)
    for start, (hidden, _) in segments:
        targets = torch.from_numpy(tokens[start + 1 : start + step + 1].astype(np.int64)).to(hidden.device)
        losses = reader.lm_head.loss(hidden[0], targets)
        scored = losses.detach()
        own += float(scored.cpu().double().sum())
        mixed += float(memory.mix(hidden[0].detach(), targets, scored).cpu().double().sum()) if memory else 0.0
        if learner:
            if not math.isfinite(own):
                raise LTCError(
                    f"dynamic evaluation diverged after {start:,} tokens: lower the learning rate "
                    f"{learner.config.learning_rate:g} (--dynamic-lr)"
                )
            learner.learn(losses.mean())
        release_pages(tokens)
        if progress:
            progress(min(start + step, pairs), pairs)
    return Adapted(own, mixed if memory else own, pairs)


class Learner:
    """A copy of a model that is trained on the text as it reads it. `model` is the copy.

    Args:
        model: The trained network, whose weights the copy is drawn back to.
        config: How fast.
    """

    def __init__(self, model: LiquidNetwork, config: DynamicConfig) -> None:
        self.config = config
        self.model = copy.deepcopy(model).requires_grad_(True)
        self._origin = [weight.detach() for weight in model.parameters()]
        self._weights = list(self.model.parameters())
        self._squares = [torch.zeros_like(weight) for weight in self._origin]
        self._segments, self._count = 0, sum(weight.numel() for weight in self._origin)

    def learn(self, loss: Float[Tensor, ""]) -> None:
        """Take one step on the mean loss of a segment."""
        gradients = torch.autograd.grad(loss, self._weights, allow_unused=True)
        self._segments += 1
        with torch.no_grad():
            for square, gradient in zip(self._squares, gradients, strict=True):
                new = 0.0 if gradient is None else gradient.square()  # no cluster of its tokens: a gradient of 0
                square += (new - square) / self._segments
            usual = sum(float(square.sqrt().sum()) for square in self._squares) / self._count
            for weight, origin, square, gradient in zip(
                self._weights, self._origin, self._squares, gradients, strict=True
            ):
                size = square.sqrt()
                back = (size * (self.config.decay / max(usual, 1e-30))).clamp_max_(1.0)
                move = back.mul_(origin - weight)
                if gradient is not None:
                    move -= self.config.learning_rate * gradient / (size + usual + EPSILON)
                weight.add_(move)


class ContinuousCache:
    """The last hidden vectors of a text and the token that followed each."""

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._places: Tensor | None = None
        self._tokens: Tensor | None = None

    def mix(
        self, hidden: Float[Tensor, "T D"], targets: Int[Tensor, " T"], losses: Float[Tensor, " T"]
    ) -> Float[Tensor, " T"]:
        """Losses of the mixture at the next tokens of the text, each from the cache before it; then adds them.

        Args:
            hidden: Hidden vectors that predict them.
            targets: The tokens.
            losses: -ln p of each by the model.
        """
        size, weight = self._config.size, self._config.weight
        now = F.normalize(hidden.float(), dim=1)
        places = now if self._places is None else torch.cat([self._places, now])
        known = targets if self._tokens is None else torch.cat([self._tokens, targets])
        before = len(places) - len(now)
        rows = max(1, SIMILARITIES // len(places))
        found = [
            self._log_chance(now[at : at + rows], targets[at : at + rows], places, known, before + at)
            for at in range(0, len(now), rows)
        ]
        self._places, self._tokens = places[-size:].clone(), known[-size:].clone()
        if not weight:
            return losses
        mixture = -torch.logaddexp(math.log1p(-weight) - losses, math.log(weight) + torch.cat(found))
        if before == 0:
            mixture[0] = losses[0]
        return mixture

    def _log_chance(self, now: Tensor, targets: Tensor, places: Tensor, known: Tensor, first: int) -> Tensor:
        """The logarithm of p_cache of each target, -inf where there is no such token; row 0 is place `first`."""
        first_row = max(0, first - self._config.size)
        places, known = places[first_row : first + len(now)], known[first_row : first + len(now)]
        at = torch.arange(first_row, first + len(now), device=now.device)[None, :]
        row = torch.arange(first, first + len(now), device=now.device)[:, None]
        allowed = (at < row) & (at >= row - self._config.size)
        closeness = (self._config.theta * (now @ places.T)).masked_fill_(~allowed, -math.inf)
        every = closeness.logsumexp(1)
        return closeness.masked_fill_(known[None, :] != targets[:, None], -math.inf).logsumexp(1) - every
