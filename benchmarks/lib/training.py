"""One plain loop that trains and scores any `LanguageModel`.

AdamW with linear warm-up and cosine decay over the budget. A recurrent network reads contiguous streams and carries its
state across BPTT windows; a transformer reads random crops, as nanoGPT does. Validation time counts; the weights of the
best validation are kept.
"""

import copy
import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.models import LanguageModel, detached
from ltc_textgen.data.batches import Batches

LOGITS = 2**23
"""Most logits held at once in scoring."""


@dataclass(frozen=True)
class Budget:
    """The length of a training run: exactly one of the three is set."""

    seconds: float | None = None
    steps: int | None = None
    tokens: int | None = None

    def done(self, seconds: float, step: int, tokens: int) -> float:
        """The fraction of the budget that is used; above 1 when it is exceeded."""
        used = ((seconds, self.seconds), (step, self.steps), (tokens, self.tokens))
        return next(now / limit for now, limit in used if limit)


@dataclass(frozen=True)
class Plan:
    """Hyperparameters of a training run."""

    learning_rate: float
    batch: int = 16
    length: int = 64
    weight_decay: float = 0.1
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    warmup: float = 0.03
    floor: float = 0.02
    validations: int = 10


@dataclass
class Fit:
    """The outcome of a training run; `curve` holds (seconds, tokens, validation loss)."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    train_loss: float = math.nan
    curve: list[tuple[float, int, float]] = field(default_factory=list)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for matrices and embeddings, none for biases, norms and the neurons' constants."""
    kept, decayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim == 2 and "weight" in name.split(".")[-1] and "self_weight" not in name
            (decayed if matrix and ".conv." not in name else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def fit(
    model: LanguageModel,
    train: np.ndarray,
    valid: np.ndarray,
    plan: Plan,
    budget: Budget,
    seed: int = 0,
    times: tuple[np.ndarray, np.ndarray] | None = None,
) -> Fit:
    """Train a model and leave it with the weights of its best validation.

    Args:
        model: Initialised by the caller.
        train: Token ids, (T,).
        valid: Token ids, (V,).
        plan: Hyperparameters.
        budget: Length of the run.
        seed: Seed of dropout and random crops.
        times: Elapsed times from each token of `train` and `valid` to the next; 1 everywhere if None.
    """
    torch.manual_seed(seed)
    adam = torch.optim.AdamW(
        decay_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, plan.beta2), fused=True
    )
    draw, result, best = np.random.default_rng(seed), Fit(), copy.deepcopy(model.state_dict())
    batches = Batches(train, plan.batch, plan.length)
    clocks = None if times is None else Batches(times[0], plan.batch, plan.length)
    state, recent, due, start = None, [], 1 / plan.validations, time.perf_counter()
    while (done := budget.done(result.seconds, result.steps, result.tokens)) < 1:
        if done >= due:
            best = _validate(model, valid, result, best, times)
            due += 1 / plan.validations
        for group in adam.param_groups:
            group["lr"] = plan.learning_rate * rate(done, plan)
        inputs, targets, reset = _window(model, train, batches, result.steps, plan, draw)
        elapsed = None if clocks is None else clocks.window(result.steps)[0].float()
        hidden, state = model.train()(inputs, None if reset else state, elapsed)
        loss = model.loss(hidden, targets).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
        adam.step()
        state = detached(state)
        recent = [*recent[-99:], loss.item()]
        result.steps, result.tokens = result.steps + 1, result.tokens + targets.numel()
        result.seconds = time.perf_counter() - start
    model.load_state_dict(_validate(model, valid, result, best, times))
    result.seconds, result.train_loss = time.perf_counter() - start, statistics.mean(recent)
    return result


def rate(done: float, plan: Plan) -> float:
    """The learning rate after a fraction `done` of the budget, as a multiple of the peak."""
    if done < plan.warmup:
        return max(done / plan.warmup, 0.01)
    progress = (done - plan.warmup) / (1 - plan.warmup)
    return plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _window(
    model: LanguageModel, train: np.ndarray, batches: Batches, step: int, plan: Plan, draw: np.random.Generator
) -> tuple[Tensor, Tensor, bool]:
    """Inputs, targets, and whether the state is reset."""
    if model.context is None:
        inputs, targets, reset = batches.window(step)
        return inputs, targets, bool(reset.all())
    starts = draw.integers(0, len(train) - plan.length, plan.batch)
    block = torch.from_numpy(np.stack([train[s : s + plan.length + 1] for s in starts]).astype(np.int64))
    return block[:, :-1], block[:, 1:], True


def _validate(
    model: LanguageModel,
    valid: np.ndarray,
    result: Fit,
    best: dict[str, Tensor],
    times: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, Tensor]:
    """Validate, append to the curve, and return the better weights. Parallel streams; the final scores use one."""
    elapsed = None if times is None else times[1]
    streams = max(1, min(32, len(valid) // 1024))
    loss = score(model, valid, window=model.context, streams=streams, elapsed=elapsed)
    result.curve.append((result.seconds, result.tokens, loss))
    if loss >= result.best_loss:
        return best
    result.best_loss = loss
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.inference_mode()
def score(
    model: LanguageModel,
    tokens: np.ndarray,
    window: int | None = None,
    streams: int = 1,
    elapsed: np.ndarray | None = None,
    chunk: int = 512,
) -> float:
    """Nats per token over all tokens but the first; exact, no sampling.

    Args:
        model: Put into evaluation mode.
        tokens: Token ids, (T,).
        window: Number of tokens after which the state is reset; None carries it throughout. With None a transformer
            reads windows of its context length that overlap by three quarters, so that every token but the first
            ones has at least that much context.
        streams: Parts of the text scored in parallel from the zero state (carried state only); 1 is exact.
        elapsed: Time from each token to the next.
        chunk: Tokens per forward pass; does not change the result.
    """
    model.eval()
    pairs = len(tokens) - 1
    if model.context is not None and window is None:
        return _score_overlapping(model, tokens) / pairs
    nll, done = 0.0, 0
    while done < pairs:
        left = pairs - done
        length = min(window or left // streams or left, left)
        rows = max(1, min(streams if window is None else 16_384 // length, left // length))
        state = None
        for at in range(0, length, chunk):
            columns = done + at + np.arange(min(chunk, length - at))[None] + length * np.arange(rows)[:, None]
            ids, targets = (torch.from_numpy(tokens[columns + shift].astype(np.int64)) for shift in (0, 1))
            time_ = None if elapsed is None else torch.from_numpy(elapsed[columns]).float()
            hidden, state = model(ids, state, time_)
            nll += _sum(model, hidden, targets)
        done += rows * length
    return nll / pairs


def _score_overlapping(model: LanguageModel, tokens: np.ndarray) -> float:
    assert model.context is not None
    pairs, context = len(tokens) - 1, model.context
    stride = max(1, context // 4)
    starts = np.arange(0, max(1, pairs - context + 1), stride)
    if starts[-1] + context < pairs:
        starts = np.append(starts, pairs - context)
    nll, scored = 0.0, 0
    for group in np.array_split(starts, math.ceil(len(starts) * context / 16_384)):
        columns = group[:, None] + np.arange(min(context, pairs))[None]
        ids, targets = (torch.from_numpy(tokens[columns + shift].astype(np.int64)) for shift in (0, 1))
        hidden, _ = model(ids)
        for row, start in enumerate(group):
            skip = scored - start
            nll += _sum(model, hidden[row, skip:], targets[row, skip:])
            scored = int(columns[row, -1]) + 1
    assert scored == pairs
    return nll


def _sum(model: LanguageModel, hidden: Tensor, targets: Tensor) -> float:
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    size = max(1, LOGITS // model.vocabulary)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    return sum(float(model.loss(h, t).double().sum()) for h, t in parts)


@torch.inference_mode()
def random_crops(model: LanguageModel, tokens: np.ndarray, window: int, batch: int = 12, rounds: int = 20) -> float:
    """nanoGPT's estimate: mean loss of random crops without context; 20 rounds of 12 in its CPU configuration."""
    model.eval()
    draw, total = np.random.default_rng(1337), 0.0
    for _ in range(rounds):
        starts = draw.integers(0, len(tokens) - window, batch)
        block = torch.from_numpy(np.stack([tokens[s : s + window + 1] for s in starts]).astype(np.int64))
        hidden, _ = model(block[:, :-1])
        total += _sum(model, hidden, block[:, 1:]) / block[:, 1:].numel()
    return total / rounds
