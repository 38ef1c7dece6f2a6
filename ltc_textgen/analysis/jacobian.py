"""How a small difference in the state of a layer grows or decays: Jacobians and Lyapunov exponents.

The Jacobian of a layer at a token is dx'/dx, the state after it by the state before it, at the input that the layer
received. It is exactly diagonal in the diagonal coupling. The Lyapunov exponents are the mean growth rates, per token,
of differences in its directions. If all are below zero, the influence of the initial state decays; if the largest is
above zero, the layer is chaotic. The state of a layer depends on the layers below it alone, so the exponents of a
network are those of its layers (and those of the convolutions, which are minus infinity: their memory is finite).

Source:
    Benettin et al. 1980, Meccanica 15, 9-20 (exponents by repeated QR).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.func import jvp, vmap

from ltc_textgen.analysis.reading import observe_text
from ltc_textgen.errors import UsageError
from ltc_textgen.layers.base import LiquidLayer, state_dtype
from ltc_textgen.layers.diagonal import DiagonalLTC
from ltc_textgen.model.blocks import Trajectory, own_trajectory
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.shapes import Float, Tensor

SMALLEST = 1e-30
"""Slopes below it count as it: their logarithm would be minus infinity."""

Step = tuple[LiquidLayer, Tensor, Tensor, Tensor]
"""A layer, and for its tokens drives (T, _), states before each (T, N) and elapsed times (T, 1)."""


def jacobian(model: LiquidNetwork, text: str | Tensor, tokenizer: Any = None) -> list[Float[np.ndarray, "T ..."]]:
    """dx'/dx of every layer at every token.

    Args:
        model: Network, in any mode.
        text: A text, or token ids (1, T). The memory is that of the result.
        tokenizer: That of the run directory if None.

    Returns:
        One array per layer: (T, N), the diagonal, in the diagonal coupling; (T, N, N) otherwise.
    """
    found: list[list[np.ndarray]] = [[] for _ in model.layers]
    for steps in _steps(model, text, tokenizer):
        for layer, step in zip(found, steps, strict=True):
            layer.append(_diagonal(step) if isinstance(step[0], DiagonalLTC) else _dense(step))
    return [np.concatenate(parts) for parts in found]


def lyapunov(
    model: LiquidNetwork,
    text: str | Tensor,
    tokenizer: Any = None,
    *,
    count: int | None = None,
    skip: int = 16,
    seed: int = 0,
) -> list[Float[np.ndarray, " N"]]:
    """Lyapunov exponents of every layer along a text, in 1/token, largest first.

    Exact along this text in the diagonal coupling, where directions are neurons; elsewhere estimated by QR.

    Args:
        model: Network, in any mode.
        text: A text, or token ids (1, T), of more than `skip` tokens.
        tokenizer: That of the run directory if None.
        count: Exponents of a layer; all if None.
        skip: Tokens before the averaging, in which the directions settle.
        seed: Of the first directions.

    Raises:
        UsageError: If the text is too short, or there are no tokens or tokenizer.
    """
    rates = [_Rates(count, skip, seed) for _ in model.layers]
    for steps in _steps(model, text, tokenizer):
        for rate, step in zip(rates, steps, strict=True):
            rate.add(step)
    return [rate.result() for rate in rates]


class _Rates:
    """Mean growth rates of one layer."""

    def __init__(self, count: int | None, skip: int, seed: int) -> None:
        self._count, self._skip, self._seen = count, skip, 0
        self._sum: np.ndarray | float = 0.0
        self._directions: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, step: Step) -> None:
        """Follow the directions over the tokens of a chunk."""
        if isinstance(step[0], DiagonalLTC):
            rates = np.log(np.abs(_diagonal(step)).astype(np.float64).clip(min=SMALLEST))
        else:
            rates = self._by_qr(step)
        self._sum = self._sum + rates[max(0, self._skip - self._seen) :].sum(axis=0)
        self._seen += len(rates)

    def result(self) -> Float[np.ndarray, " N"]:
        """The exponents, largest first."""
        tokens = self._seen - self._skip
        if tokens < 1:
            raise UsageError(f"lyapunov: the text has {self._seen} tokens; more than {self._skip} are needed")
        return np.sort(np.asarray(self._sum) / tokens)[::-1][: self._count].copy()

    def _by_qr(self, step: Step) -> Float[np.ndarray, "T N"]:
        cell, drives, states, times = step
        if self._directions is None:
            count = min(self._count or cell.hidden_size, cell.hidden_size)
            drawn = torch.randn(cell.hidden_size, count, generator=self._generator, dtype=torch.float64)
            self._directions = torch.linalg.qr(drawn)[0].to(states)
        rates = []
        for drive, x, time in zip(drives, states, times, strict=True):
            q, r = torch.linalg.qr(_pushed(cell, drive, x, time, self._directions).double())
            self._directions = q.to(states.dtype)
            rates.append(r.diagonal().abs().clamp_min(SMALLEST).log())
        return torch.stack(rates).cpu().numpy()


def _steps(model: LiquidNetwork, text: str | Tensor, tokenizer: Any) -> Iterator[list[Step]]:
    """The drives, states and times of every layer, chunk by chunk."""
    seen: list[Step] = []

    def record(cell: LiquidLayer, u: Tensor, x: Tensor, elapsed: Tensor) -> Tensor:
        states = own_trajectory(cell, u, x, elapsed)
        drive, dtype = cell.project(u), state_dtype(u.dtype)
        before = torch.cat([x[:, None].to(dtype), states[:, :-1]], dim=1)
        seen.append((cell, drive[0].to(dtype), before[0], elapsed[0, :, None].to(dtype)))
        return states

    moves: list[Trajectory] = [record for _ in model.layers]
    for _ in observe_text(model, model.token_ids(text, tokenizer), moves=lambda start, stop: moves):
        yield seen.copy()
        seen.clear()


def _diagonal(step: Step) -> Float[np.ndarray, "T N"]:
    cell, drive, states, time = step
    with torch.enable_grad():
        x = states.detach().requires_grad_()
        (slope,) = torch.autograd.grad(cell.step(drive, x, time).sum(), x)
    return slope.cpu().numpy()


def _dense(step: Step) -> Float[np.ndarray, "T N N"]:
    cell, drives, states, times = step
    identity = torch.eye(cell.hidden_size, dtype=states.dtype, device=states.device)
    rows = zip(drives, states, times, strict=True)
    return torch.stack([_pushed(cell, drive, x, time, identity) for drive, x, time in rows]).cpu().numpy()


def _pushed(
    cell: LiquidLayer, drive: Float[Tensor, " _"], x: Float[Tensor, " N"], time: Float[Tensor, "1"], by: Tensor
) -> Float[Tensor, "N K"]:
    """The Jacobian of a token times the columns of a matrix."""

    def after(state: Tensor) -> Tensor:
        return cell.step(drive[None], state[None], time[None])[0]

    return vmap(lambda column: jvp(after, (x,), (column,))[1], in_dims=1, out_dims=1)(by)
