"""What every liquid cell is: input mixing for all tokens at once, then a recurrence over time.

    u (B, T, D) --project--> drive (B, T, .) --scan--> states (B, T, N) --readout--> y (B, T, O)

`project` holds everything that does not depend on the state, so that it is one large product over all tokens.
`scan` is the recurrence: by default a readable loop over `step`, in the cells that have one a fused kernel of the
same signature. Nothing recurrent is kept on the module: the state goes in and comes out.

`LiquidCell` is this contract; `MembraneCell` is a cell that integrates the membrane equation with a solver.

To add a cell: subclass `MembraneCell`, write `project`, `membrane` and `capacitance` (or subclass `LiquidCell` and
write `project`, `step` and `time_constants`), and register it in `cells/__init__.py`.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from ltc_textgen.config import ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.dispatch import hooked
from ltc_textgen.shapes import Bool, Float, Int, Tensor
from ltc_textgen.solvers import Membrane, integrate

Elapsed = Float[Tensor, "..."] | Int[Tensor, "..."] | float | int | None
"""Time from each token to the next: None (1 everywhere), a number, or a tensor of shape (), (B,), (B, 1) or (B, T)."""


def unwatched(layer: nn.Module) -> bool:
    """Whether a layer is one linear map that nobody has adapted or looks at, so that its weights say all of it."""
    return type(layer) is nn.Linear and (torch.compiler.is_compiling() or not hooked(layer))


class LiquidCell(nn.Module):
    """A layer of N neurons in continuous time.

    Args:
        input_size: D, features of one token.
        hidden_size: N, neurons.
        steps: Solver sub-steps per token, >= 1.
        step_size: Length of a sub-step in token time, > 0. The horizon of a token is steps * step_size * elapsed.
    """

    def __init__(self, input_size: int, hidden_size: int, *, steps: int = 6, step_size: float = 1 / 6) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.steps, self.step_size = steps, step_size

    @classmethod
    def from_settings(cls, settings: ModelConfig, input_size: int, hidden_size: int) -> "LiquidCell":
        """The cell that `settings` describe, freshly initialised.

        Raises:
            UsageError: If the settings do not fit this cell.
        """
        return cls(input_size, hidden_size, steps=settings.steps, step_size=settings.step_size)

    @property
    def output_size(self) -> int:
        """O, features that leave the layer."""
        return self.hidden_size

    @abstractmethod
    def project(self, u: Float[Tensor, "B T D"]) -> Float[Tensor, "B T _"]:
        """Everything that depends on the input alone, for all tokens at once."""

    @abstractmethod
    def step(
        self, drive: Float[Tensor, "B _"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B 1"]
    ) -> Float[Tensor, "B N"]:
        """The state after one token."""

    @abstractmethod
    def time_constants(self, u: Float[Tensor, "B T D"], states: Float[Tensor, "B T N"]) -> Float[Tensor, "B T N"]:
        """Time constant of every neuron at every token, in token time, at the given states."""

    def readout(self, states: Float[Tensor, "*B N"]) -> Float[Tensor, "*B O"]:
        """The part of the state that leaves the layer."""
        return states

    def initial_state(self, batch_size: int) -> Float[Tensor, "B N"]:
        """The state before the first token: rest."""
        weight = next(self.parameters())
        return torch.zeros(batch_size, self.hidden_size, dtype=state_dtype(weight.dtype), device=weight.device)

    def scan(
        self, drive: Float[Tensor, "B T _"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        """Read all tokens in order: the states after each token, and the last."""
        states = []
        for t in range(drive.shape[1]):
            x = self.step(drive[:, t], x, elapsed[:, t, None])
            states.append(x)
        return torch.stack(states, dim=1), x

    def masked_scan(
        self,
        drive: Float[Tensor, "B T _"],
        x: Float[Tensor, "B N"],
        elapsed: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        """`scan` in which padding moves no state."""
        states = []
        for t in range(drive.shape[1]):
            x = torch.where(mask[:, t, None], self.step(drive[:, t], x, elapsed[:, t, None]), x)
            states.append(x)
        return torch.stack(states, dim=1), x

    def forward(
        self,
        u: Float[Tensor, "B T D"],
        state: Float[Tensor, "B N"] | None = None,
        elapsed: Elapsed = None,
        mask: Bool[Tensor, "B T"] | None = None,
        *,
        checked: bool = False,
    ) -> tuple[Float[Tensor, "B T O"], Float[Tensor, "B N"]]:
        """Run the layer over a sequence (or a chunk, or a single token: the results are the same).

        Args:
            u: Inputs.
            state: State before the first token; rest if None.
            elapsed: Time from each token to the next, in token time, >= 0 and finite; 1 if None. A number or a
                tensor of shape (), (B,), (B, 1) or (B, T); a tensor of shape (B,) is one value per sample.
            mask: False where a token is padding: it moves no state, and its output repeats the state before it.
            checked: The caller vouches for the arguments, `elapsed` being what `broadcast_elapsed` returned: a network
                looks at them once, not in every layer.

        Returns:
            Outputs, and the state after the last token, in float32 (float64 for a float64 layer) under any autocast.

        Raises:
            UsageError: If a shape or a value of the arguments does not fit; the message names expected and got.
        """
        states, last = self.trajectory(u, state, elapsed, mask, checked=checked)
        return self.readout(states), last

    def trajectory(
        self,
        u: Float[Tensor, "B T D"],
        state: Float[Tensor, "B N"] | None = None,
        elapsed: Elapsed = None,
        mask: Bool[Tensor, "B T"] | None = None,
        *,
        checked: bool = False,
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        """As `forward`, but the states of all neurons in place of the outputs."""
        if not checked:
            self._check(u, state, mask)
            elapsed = broadcast_elapsed(elapsed, u.shape[0], u.shape[1], u)
        assert isinstance(elapsed, Tensor), "checked times are a tensor"
        if mask is not None:
            u = torch.where(mask[:, :, None], u, 0.0)  # not even NaN in the padding reaches a state
        x = self.initial_state(u.shape[0]) if state is None else state
        return self.run(u, x, elapsed, mask)

    def run(
        self,
        u: Float[Tensor, "B T D"],
        x: Float[Tensor, "B N"],
        elapsed: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None,
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        """`project`, then `scan`, for arguments that are checked and complete."""
        drive = self.project(u)
        with torch.autocast(u.device.type, enabled=False):
            dtype = state_dtype(drive.dtype)
            drive, x, time = drive.to(dtype), x.to(dtype), elapsed.to(dtype)
            return self.scan(drive, x, time) if mask is None else self.masked_scan(drive, x, time, mask)

    def _check(self, u: Tensor, state: Tensor | None, mask: Tensor | None) -> None:
        if u.ndim != 3 or u.shape[2] != self.input_size or 0 in u.shape:
            raise UsageError(f"input: expected (B, T, {self.input_size}) with B, T >= 1, got {tuple(u.shape)}")
        weight = next(self.parameters())
        autocast = torch.is_autocast_enabled(u.device.type) and u.is_floating_point()
        if u.dtype != weight.dtype and not autocast:
            raise UsageError(f"input: expected {weight.dtype}, the type of the layer's weights, got {u.dtype}")
        if state is not None and state.shape != (u.shape[0], self.hidden_size):
            raise UsageError(f"state: expected {(u.shape[0], self.hidden_size)}, got {tuple(state.shape)}")
        if state is not None and not state.is_floating_point():
            raise UsageError(f"state: expected floating point, got {state.dtype}")
        if mask is not None and (mask.shape != u.shape[:2] or mask.dtype != torch.bool):
            shape = tuple(mask.shape)
            raise UsageError(f"mask: expected torch.bool of {tuple(u.shape[:2])}, got {mask.dtype} of {shape}")


class MembraneCell(LiquidCell):
    """A layer of N neurons that obey the membrane equation (see `solvers`).

    Args:
        input_size: D, features of one token.
        hidden_size: N, neurons.
        solver: How a sub-step is taken.
        adaptive: True: the time constant C / G moves with the conductances (the liquid time constant). False: it is
            frozen at C / g_leak and the synapses only inject current (a CT-RNN).
        **time: `steps` and `step_size`, as in `LiquidCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        solver: Solver = Solver.semi_implicit,
        adaptive: bool = True,
        **time: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, **time)
        self.solver, self.adaptive = Solver(solver), adaptive

    @classmethod
    def from_settings(cls, settings: ModelConfig, input_size: int, hidden_size: int) -> "MembraneCell":
        return cls(input_size, hidden_size, **solver_settings(settings))

    @abstractmethod
    def membrane(self, drive: Float[Tensor, "B _"]) -> Membrane:
        """The conductances of one token as a function of the state."""

    @property
    @abstractmethod
    def capacitance(self) -> Float[Tensor, " N"]:
        """C > 0, so that tau_sys = C / G."""

    def step(
        self, drive: Float[Tensor, "B _"], x: Float[Tensor, "B N"], elapsed: Float[Tensor, "B 1"]
    ) -> Float[Tensor, "B N"]:
        """Integrate one token. An `elapsed` of zero leaves the state as it is, to the bit."""
        return integrate(self.solver, self.membrane(drive), x, self.capacitance, elapsed * self.step_size, self.steps)

    def masked_scan(
        self,
        drive: Float[Tensor, "B T _"],
        x: Float[Tensor, "B N"],
        elapsed: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
        """`scan` in which time stands still at padding."""
        return self.scan(drive, x, torch.where(mask, elapsed, 0.0))

    def time_constants(self, u: Float[Tensor, "B T D"], states: Float[Tensor, "B T N"]) -> Float[Tensor, "B T N"]:
        """tau_sys = C / G of every neuron at every token, in token time, at the given states."""
        drive = self.project(u)
        with torch.autocast(u.device.type, enabled=False):
            drive, constants = drive.to(states.dtype), []
            for t in range(u.shape[1]):
                conductance, _ = self.membrane(drive[:, t])(states[:, t])
                constants.append((self.capacitance / conductance).expand_as(states[:, t]))
            return torch.stack(constants, dim=1)


def solver_settings(settings: ModelConfig) -> dict[str, Any]:
    """The arguments of a `MembraneCell` that concern its solver and its time."""
    return settings.model_dump(include={"steps", "step_size", "solver", "adaptive"})


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """States and time constants are float32 under any autocast, float64 if the layer is."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def precise(parameter: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A parameter in the precision of the states, for a layer whose weights are kept in bfloat16."""
    return parameter.to(state_dtype(parameter.dtype))


def broadcast_elapsed(elapsed: Elapsed, batch: int, tokens: int, like: Tensor) -> Float[Tensor, "B T"]:
    """Bring elapsed times to one value per token.

    Args:
        elapsed: None (1 everywhere), a number, or a tensor of shape (), (B,), (B, 1) or (B, T).
        batch: B.
        tokens: T.
        like: Tensor whose device the result has.

    Returns:
        Elapsed time of every token, (B, T), float32 (float64 if `like` is).

    Raises:
        UsageError: If the shape is another one, a value is negative or not finite, or it is of a type that is no time.
    """
    dtype = state_dtype(like.dtype)
    if elapsed is None:
        return torch.ones(batch, tokens, dtype=dtype, device=like.device)
    time = (
        elapsed.to(like.device)
        if isinstance(elapsed, Tensor)
        else torch.tensor(elapsed, dtype=dtype, device=like.device)
    )
    if time.dtype == torch.bool or time.is_complex():
        raise UsageError(f"elapsed: expected numbers, got {time.dtype}")
    time = time.to(dtype)
    if time.shape == (batch,):
        time = time[:, None]
    if time.shape not in {(), (batch, 1), (batch, tokens)}:
        raise UsageError(
            f"elapsed: expected shape (), ({batch},), ({batch}, 1) or ({batch}, {tokens}), got {tuple(time.shape)}"
        )
    # A compiled graph cannot stop on a value; the CPU kernels check theirs again.
    if not torch.compiler.is_compiling() and not bool(((time >= 0) & torch.isfinite(time)).all()):
        raise UsageError("elapsed: every value must be finite and >= 0")
    return time.expand(batch, tokens)
