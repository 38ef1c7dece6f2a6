"""What every liquid layer is: input mixing for all tokens at once, then a recurrence over time.

    u (B, T, D) --project--> drive (B, T, .) --scan--> states (B, T, N) --readout--> y (B, T, O)

`project` holds everything that does not depend on the state, so that it is one large product over all tokens.
`scan` is the recurrence: by default a readable loop over `step`, in some layers a fused kernel that computes the same.
A kernel never replaces what a subclass overrides or a user patches: then the loop runs. The module holds no recurrent
state: it is an argument and a result.

`LiquidLayer` is this contract; `MembraneLayer` integrates the membrane equation with a solver.

To add a layer: subclass `MembraneLayer`, write `project`, `membrane` and `capacitance` (or subclass `LiquidLayer` and
write `project`, `step` and `time_constants`), and register it in `layers/__init__.py`.
"""

from abc import abstractmethod
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ltc_textgen.config import Coupling, ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.dispatch import Path, changed, choose, is_standard, is_transformed
from ltc_textgen.shapes import Bool, Float, Int, Tensor
from ltc_textgen.solvers import Membrane, Method, integrate

Elapsed = Float[Tensor, "..."] | Int[Tensor, "..."] | float | int | None
"""Time from each token to the next: None (1 everywhere), a number, or a tensor of shape (), (B,), (B, 1) or (B, T)."""


class LiquidLayer(nn.Module):
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
    def from_settings(cls, settings: ModelConfig, input_size: int, hidden_size: int) -> "LiquidLayer":
        """The layer that `settings` describe, freshly initialised.

        Raises:
            UsageError: If the settings do not fit this layer.
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
        """The zero state, before the first token."""
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
        """`scan` in which padding changes no state."""
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
            state: State before the first token, (B, N), floating point; zeros if None.
            elapsed: Time from each token to the next, in token time, >= 0 and finite; 1 if None. A number or a
                tensor of shape (), (B,), (B, 1) or (B, T). Shape (B,) is one value per sample; where B = T it is
                rejected, for it could mean one value per token.
            mask: False where a token is padding: it changes no state, and its output repeats the state before it.
            checked: The arguments have been validated, and `elapsed` is what `broadcast_elapsed` returned: a network
                does so once, not in every layer.

        Returns:
            Outputs, and the state after the last token, in float32 (float64 for a float64 layer) under any autocast.

        Raises:
            UsageError: If a type, shape or value of an argument does not fit; the message names expected and got.
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

    def _check(self, u: Any, state: Any, mask: Any) -> None:
        if isinstance(u, PackedSequence):
            raise UsageError("input: expected a tensor (B, T, D), got a PackedSequence; pad it and pass mask=")
        for name, value in (("input", u), ("state", state), ("mask", mask)):
            if not isinstance(value, Tensor) and not (value is None and name != "input"):
                raise UsageError(f"{name}: expected a tensor, got {type(value).__name__}")
        if u.ndim != 3 or u.shape[2] != self.input_size or 0 in u.shape:
            raise UsageError(f"input: expected (B, T, {self.input_size}) with B, T >= 1, got {tuple(u.shape)}")
        weight = next(self.parameters())
        autocast = torch.is_autocast_enabled(u.device.type) and u.is_floating_point()
        if u.dtype != weight.dtype and not autocast:
            raise UsageError(f"input: expected {weight.dtype}, the type of the layer's weights, got {u.dtype}")
        if state is not None and not state.is_floating_point():
            hint = "; a padding mask is passed as mask=" if state.dtype == torch.bool else ""
            raise UsageError(f"state: expected floating point, got {state.dtype}{hint}")
        if state is not None and state.shape != (u.shape[0], self.hidden_size):
            raise UsageError(f"state: expected {(u.shape[0], self.hidden_size)}, got {tuple(state.shape)}")
        if mask is not None and (mask.shape != u.shape[:2] or mask.dtype != torch.bool):
            shape = tuple(mask.shape)
            raise UsageError(f"mask: expected torch.bool of {tuple(u.shape[:2])}, got {mask.dtype} of {shape}")


class MembraneLayer(LiquidLayer):
    """A layer of N neurons that obey the membrane equation (see `solvers`).

    Args:
        input_size: D, features of one token.
        hidden_size: N, neurons.
        solver: How a sub-step is taken.
        adaptive: True: the time constant C / G moves with the conductances (the liquid time constant). False: it is
            frozen at C / g_leak and the synapses only inject current (a CT-RNN).
        **time: `steps` and `step_size`, as in `LiquidLayer`.
    """

    coupling: ClassVar[Coupling | None] = None
    """Whose kernels may integrate this layer; None if there are none."""

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
    def from_settings(cls, settings: ModelConfig, input_size: int, hidden_size: int) -> "MembraneLayer":
        return cls(input_size, hidden_size, **solver_settings(settings))

    @property
    def method(self) -> Method:
        """How a token is integrated."""
        return Method(self.steps, self.solver, self.adaptive)

    def path(self, drive: Float[Tensor, "B T _"], kind: "type[MembraneLayer]") -> Path:
        """Which kernel may take the place of `step`: that of the class `kind`, unless its equation was changed."""
        if self.coupling is None or not is_standard(self.solver) or changed(self, kind, "step", "membrane", "physics"):
            return "reference"
        return choose(self.coupling, drive)

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
        """`scan` with elapsed time 0 at padding."""
        return self.scan(drive, x, torch.where(mask, elapsed, 0.0))

    def time_constants(self, u: Float[Tensor, "B T D"], states: Float[Tensor, "B T N"]) -> Float[Tensor, "B T N"]:
        """tau_sys = C / G of every neuron at every token, in token time, at the given states."""
        drive = self.project(u)
        with torch.autocast(u.device.type, enabled=False):
            conductance, _ = self.membrane(drive.to(states.dtype).flatten(0, 1))(states.flatten(0, 1))
            return (
                (self.capacitance / conductance)
                .expand(states.shape[0] * states.shape[1], -1)
                .contiguous()
                .view_as(states)
            )


def solver_settings(settings: ModelConfig) -> dict[str, Any]:
    """The arguments of a `MembraneLayer` that concern its solver and its time."""
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
        elapsed: None (1 everywhere), a number, or a tensor of shape (), (B,), (B, 1) or (B, T); (B,) only if B is not
            T, or 1.
        batch: B.
        tokens: T.
        like: Tensor whose device the result has.

    Returns:
        Elapsed time of every token, (B, T), float32 (float64 if `like` is).

    Raises:
        UsageError: If the shape is another one or ambiguous, a value is negative or not finite, or the type is not a
            number.
    """
    dtype = state_dtype(like.dtype)
    if elapsed is None:
        return torch.ones(batch, tokens, dtype=dtype, device=like.device)
    if isinstance(elapsed, Tensor):
        time = elapsed.to(like.device)
    elif isinstance(elapsed, Real) and not isinstance(elapsed, bool):
        time = torch.tensor(elapsed, dtype=dtype, device=like.device)
    else:
        raise UsageError(f"elapsed: expected a number or a tensor, got {type(elapsed).__name__}")
    if time.dtype == torch.bool or time.is_complex():
        hint = "; a padding mask is passed as mask=" if time.dtype == torch.bool else ""
        raise UsageError(f"elapsed: expected numbers, got {time.dtype}{hint}")
    if time.shape == (batch,) and batch == tokens > 1:
        one, other = f"({batch}, 1) for one value per sample", f"({batch}, {tokens}) for one per token"
        raise UsageError(f"elapsed: shape ({batch},) is ambiguous where B = T; expected {one} or {other}")
    time = time.to(dtype)
    if time.shape == (batch,):
        time = time[:, None]
    if time.shape not in {(), (batch, 1), (batch, tokens)}:
        raise UsageError(
            f"elapsed: expected shape (), ({batch},), ({batch}, 1) or ({batch}, {tokens}), got {tuple(time.shape)}"
        )
    # Values are unknown to a compiler and within a function transform; the CPU kernels check theirs again.
    known = not torch.compiler.is_compiling() and not is_transformed()
    if known and not bool(((time >= 0) & torch.isfinite(time)).all()):
        raise UsageError("elapsed: every value must be finite and >= 0")
    return time.expand(batch, tokens)
