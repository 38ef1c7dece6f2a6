"""Training and scoring of any `rivals.Rival` by one plain loop, and a file of results that outlives an interruption.

The loop is AdamW with a warm-up and half a cosine over the budget. A recurrent network reads contiguous lanes and
carries its state from window to window; a transformer reads random crops, as nanoGPT does. Time spent in validation
counts; the weights of the best validation are the result.
"""

import copy
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rivals import Rival, detached
from torch import Tensor, nn

from ltc_textgen.data.batches import Lanes

LOGITS = 2**23
"""Logits that exist at once in scoring."""


@dataclass(frozen=True)
class Budget:
    """How long a training is: exactly one of the three."""

    seconds: float | None = None
    steps: int | None = None
    tokens: int | None = None

    def done(self, seconds: float, step: int, tokens: int) -> float:
        """Share that is used, 0 to 1 and beyond."""
        used = ((seconds, self.seconds), (step, self.steps), (tokens, self.tokens))
        return next(now / limit for now, limit in used if limit)


@dataclass(frozen=True)
class Plan:
    """How a rival is trained."""

    learning_rate: float
    batch: int = 16
    length: int = 64
    weight_decay: float = 0.1
    beta2: float = 0.98
    clip: float = 1.0
    warmup: float = 0.03
    floor: float = 0.02
    validations: int = 10


@dataclass
class Fit:
    """What a training came to; `curve` holds (seconds, tokens, validation loss)."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    train_loss: float = math.nan
    curve: list[tuple[float, int, float]] = field(default_factory=list)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices of linear layers, recurrences and embeddings decay; biases, norms and the neurons' physics do not."""
    kept, decayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim == 2 and "weight" in name.split(".")[-1] and "self_weight" not in name
            (decayed if matrix and ".conv." not in name else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def fit(
    model: Rival,
    train: np.ndarray,
    valid: np.ndarray,
    plan: Plan,
    budget: Budget,
    seed: int = 0,
    times: tuple[np.ndarray, np.ndarray] | None = None,
) -> Fit:
    """Train a model, and leave it with the weights of its best validation.

    Args:
        model: Freshly made.
        train: Token ids.
        valid: Token ids.
        plan: How.
        budget: How long.
        seed: Of dropout and crops; the weights are drawn by the caller.
        times: Elapsed time from each token of `train` and of `valid` to the next; 1 everywhere if None.
    """
    torch.manual_seed(seed)
    adam = torch.optim.AdamW(
        decay_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, plan.beta2), fused=True
    )
    draw, result, best = np.random.default_rng(seed), Fit(), copy.deepcopy(model.state_dict())
    lanes = Lanes(train, plan.batch, plan.length)
    clocks = None if times is None else Lanes(times[0], plan.batch, plan.length)
    state, recent, due, start = None, [], 1 / plan.validations, time.perf_counter()
    while (done := budget.done(result.seconds, result.steps, result.tokens)) < 1:
        if done >= due:
            best = _validate(model, valid, result, best, times)
            due += 1 / plan.validations
        for group in adam.param_groups:
            group["lr"] = plan.learning_rate * rate(done, plan)
        inputs, targets, fresh = _window(model, train, lanes, result.steps, plan, draw)
        elapsed = None if clocks is None else clocks.window(result.steps)[0].float()
        hidden, state = model.train()(inputs, None if fresh else state, elapsed)
        loss = model.loss(hidden, targets).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        adam.step()
        state = detached(state)
        recent = [*recent[-99:], loss.item()]
        result.steps, result.tokens = result.steps + 1, result.tokens + targets.numel()
        result.seconds = time.perf_counter() - start
    model.load_state_dict(_validate(model, valid, result, best, times))
    result.seconds, result.train_loss = time.perf_counter() - start, statistics.mean(recent)
    return result


def rate(done: float, plan: Plan) -> float:
    if done < plan.warmup:
        return max(done / plan.warmup, 0.01)
    share = (done - plan.warmup) / (1 - plan.warmup)
    return plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _window(
    model: Rival, train: np.ndarray, lanes: Lanes, step: int, plan: Plan, draw: np.random.Generator
) -> tuple[Tensor, Tensor, bool]:
    """Inputs, targets, and whether the state starts from rest."""
    if model.context is None:
        inputs, targets, reset = lanes.window(step)
        return inputs, targets, bool(reset.all())
    starts = draw.integers(0, len(train) - plan.length, plan.batch)
    block = torch.from_numpy(np.stack([train[s : s + plan.length + 1] for s in starts]).astype(np.int64))
    return block[:, :-1], block[:, 1:], True


def _validate(
    model: Rival, valid: np.ndarray, result: Fit, best: dict[str, Tensor], times: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Tensor]:
    """Score, note it, and return the better weights. The lanes make it quick; the final scores use one."""
    elapsed = None if times is None else times[1]
    lanes = max(1, min(32, len(valid) // 1024))
    loss = score(model, valid, window=model.context, lanes=lanes, elapsed=elapsed)
    result.curve.append((result.seconds, result.tokens, loss))
    if loss >= result.best_loss:
        return best
    result.best_loss = loss
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.inference_mode()
def score(
    model: Rival,
    tokens: np.ndarray,
    window: int | None = None,
    lanes: int = 1,
    elapsed: np.ndarray | None = None,
    chunk: int = 512,
) -> float:
    """Nats per token over all tokens but the first, which is context alone: exact, no sampling.

    Args:
        model: Scored in evaluation mode, and left in it.
        tokens: Token ids, (T,).
        window: Tokens after which everything before is forgotten; None carries the state throughout. A transformer,
            which has none, then sees windows of its context that overlap by three quarters: each token but the first
            ones is predicted from at least that much.
        lanes: Parts that are read side by side from rest (carried state only); 1 is exact.
        elapsed: Time from each token to the next.
        chunk: Tokens that are read at once; makes no difference.
    """
    model.eval()
    pairs = len(tokens) - 1
    if model.context is not None and window is None:
        return _score_overlapping(model, tokens) / pairs
    nll, done = 0.0, 0
    while done < pairs:
        left = pairs - done
        length = min(window or left // lanes or left, left)
        rows = max(1, min(lanes if window is None else 16_384 // length, left // length))
        state = None
        for at in range(0, length, chunk):
            columns = done + at + np.arange(min(chunk, length - at))[None] + length * np.arange(rows)[:, None]
            ids, targets = (torch.from_numpy(tokens[columns + shift].astype(np.int64)) for shift in (0, 1))
            time_ = None if elapsed is None else torch.from_numpy(elapsed[columns]).float()
            hidden, state = model(ids, state, time_)
            nll += _sum(model, hidden, targets)
        done += rows * length
    return nll / pairs


def _score_overlapping(model: Rival, tokens: np.ndarray) -> float:
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


def _sum(model: Rival, hidden: Tensor, targets: Tensor) -> float:
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    size = max(1, LOGITS // model.vocabulary)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    return sum(float(model.loss(h, t).double().sum()) for h, t in parts)


@torch.inference_mode()
def random_crops(model: Rival, tokens: np.ndarray, window: int, batch: int = 12, rounds: int = 20) -> float:
    """nanoGPT's estimate: the mean loss of random crops, each from rest; 20 rounds of 12 in its CPU configuration."""
    model.eval()
    draw, total = np.random.default_rng(1337), 0.0
    for _ in range(rounds):
        starts = draw.integers(0, len(tokens) - window, batch)
        block = torch.from_numpy(np.stack([tokens[s : s + window + 1] for s in starts]).astype(np.int64))
        hidden, _ = model(block[:, :-1])
        total += _sum(model, hidden, block[:, 1:]) / block[:, 1:].numel()
    return total / rounds


class Results:
    """Results by key in a JSON file, written whole after each, so that an interrupted sweep goes on where it was."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        self.rows[key] = strict(dict(row))
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_name(self.path.name + ".new")
            fresh.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
            fresh.replace(self.path)


def strict(value: Any) -> Any:
    """What JSON can say: it knows no NaN and no infinity; None stands for them."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (0 for a single value)."""
    listed = list(values)
    return statistics.mean(listed), statistics.stdev(listed) if len(listed) > 1 else 0.0


def plus_minus(values: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard deviation, as a table shows it."""
    listed = list(values)
    if any(value is None or not math.isfinite(value) for value in listed):
        return "diverged"
    mean, deviation = spread(listed)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}" if len(listed) > 1 else f"{mean:.{digits}f}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])
