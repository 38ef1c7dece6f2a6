"""Comparison of an exported network with PyTorch over a long chain of tokens, its perplexity, and its speed."""

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from ltc_textgen.errors import LTCError
from ltc_textgen.export.host.network import Network
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.shapes import Float

CHAINED = 10_000
"""Length of the compared chain. A single step shows little: errors of a recurrence accumulate."""

TOLERANCE = 1e-4
"""Largest allowed difference of a logit, and of a rate 1 / tau (relative where that exceeds 1)."""

CHUNK = 250
"""Tokens compared at a time, which bounds the memory for logits."""

Progress = Callable[[int, int], None]


def compare(network: LiquidNetwork, exported: Network, *, tokens: int, progress: Progress | None = None) -> float:
    """Run an export and the network over one chain of tokens, each with its own state, never synchronised.

    The batch has two rows: tokens that the export samples itself, and random tokens at uneven times. The network runs
    with the kernels of `ltc generate`.

    Args:
        network: In evaluation mode, on the CPU.
        exported: Its export.
        tokens: Length of the chain.
        progress: Called with the tokens done and their total.

    Returns:
        The largest difference of a logit.

    Raises:
        LTCError: If a logit or time constant differs by more than `TOLERANCE`, or is not finite.
    """
    chance = np.random.default_rng(0)
    state, reference, largest = exported.initial_state(2), None, 0.0
    own = int(exported.about["eos_token_id"])
    for done in range(0, tokens, CHUNK):
        length = min(CHUNK, tokens - done)
        ids = chance.integers(network.settings.input_size, size=(2, length))
        elapsed = np.ones((2, length), np.float32)
        elapsed[1] = chance.uniform(0, 1, length)
        logits, constants = [], []
        for t in range(length):
            ids[0, t] = own
            given, state, taus = exported.observe(ids[:, t], state, elapsed[:, t])
            if not np.isfinite(given).all():
                raise LTCError(f"export: the network's logits are not finite after {done + t + 1} tokens")
            own = draw(given[0], chance.random())
            logits.append(given)
            constants.append(taus)
        with torch.inference_mode():
            inputs, times = torch.from_numpy(ids), torch.from_numpy(elapsed)
            if done == 0:
                expected = network.time_constants(inputs, reference, times)
                _check_time_constants([np.stack(layer, 1) for layer in zip(*constants, strict=True)], expected)
            hidden, reference = network.advance(inputs, reference, times)
            difference = np.abs(network.lm_head.logits(hidden).float().numpy() - np.stack(logits, 1)).max()
        if not difference <= TOLERANCE:
            raise LTCError(
                f"export: the ONNX model differs from PyTorch by {difference:.1e} within {done + length:,} tokens, "
                f"more than {TOLERANCE}: nothing was written"
            )
        largest = max(largest, float(difference))
        if progress:
            progress(done + length, tokens)
    return largest


def _check_time_constants(ours: list[np.ndarray], theirs: list[torch.Tensor]) -> None:
    for layer, (tau, expected) in enumerate(zip(ours, theirs, strict=True)):
        # Rates, for a time constant may be infinite (cfc).
        if not np.allclose(1 / tau, 1 / expected.float().numpy(), rtol=TOLERANCE, atol=TOLERANCE):
            raise LTCError(f"export: the time constants of layer {layer} differ from PyTorch: nothing was written")


def draw(logits: Float[np.ndarray, " V"], uniform: float) -> int:
    """A token drawn from the softmax of logits by inversion of its cumulative sums at `uniform` in [0, 1)."""
    cumulative = np.cumsum(np.exp(logits.astype(np.float64) - logits.max()))
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


def perplexity(exported: Network, tokens: np.ndarray, progress: Progress | None = None) -> float:
    """Perplexity of a text read as one stream, the state carried throughout.

    Args:
        exported: The network.
        tokens: Ids, (T,), T >= 2; the first is only context.
        progress: Called with the tokens done and their total.
    """
    state, nats = exported.initial_state(), 0.0
    for t, (token, target) in enumerate(pairwise(tokens)):
        logits, state = exported.step(np.array([token], np.int64), state)
        row = logits[0].astype(np.float64)
        nats += np.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
        if progress and t % CHUNK == 0:
            progress(t, len(tokens) - 1)
    return float(np.exp(nats / (len(tokens) - 1)))


def tokens_per_second(exported: Network, seconds: float = 1.0) -> float:
    """Greedy decoding speed of one sequence: the median over five fifths of `seconds`."""
    state, token, rates = exported.initial_state(), np.array([exported.about["eos_token_id"]]), []
    for _ in range(5):
        begin, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < seconds / 5:
            logits, state = exported.step(token, state)
            token, count = logits.argmax(1), count + 1
        rates.append(count / passed)
    return float(np.median(rates))
