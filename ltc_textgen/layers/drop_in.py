"""`LTC` and `CfC` with the arguments of `ncps.torch`, and its wirings: change the import, keep the rest.

    from ltc_textgen.layers.drop_in import LTC, CfC, AutoNCP     # was: ncps.torch, ncps.wirings

The layers underneath are `SynapticLTC` and `CfC` of this package, with their kernels. State dicts of ncps load, also
of a model that holds such a layer, and `ncps_state_dict` gives one back. Two things are more than in ncps: `timespans`
of a batch act on the sample they belong to, and a `PackedSequence` is read without its padding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ltc_textgen.errors import UsageError
from ltc_textgen.layers.base import LiquidLayer, broadcast_elapsed
from ltc_textgen.layers.cfc import CfC as ClosedFormLayer
from ltc_textgen.layers.ncps import layer_from_ncps, layer_to_ncps
from ltc_textgen.layers.synaptic import SynapticLTC
from ltc_textgen.layers.wirings import Wiring, auto_ncp, fully_connected, ncp, random
from ltc_textgen.shapes import Bool, Float, Tensor

State = Any
"""(B, N), or ((B, N), (B, N)) with mixed memory; without the B for a single sequence."""


class WiringOf:
    """A wiring that waits for the number of inputs.

    Args:
        build: From inputs to the wiring.
    """

    def __init__(self, build: Callable[[int], Wiring]) -> None:
        self.build = build


def FullyConnected(
    units: int, output_dim: int | None = None, erev_init_seed: int = 1111, self_connections: bool = True
) -> WiringOf:
    """The same as `ncps.wirings.FullyConnected`."""
    return WiringOf(lambda inputs: fully_connected(units, inputs, output_dim, erev_init_seed, self_connections))


def Random(units: int, output_dim: int | None = None, sparsity_level: float = 0.0, random_seed: int = 1111) -> WiringOf:
    """The same as `ncps.wirings.Random`."""
    return WiringOf(lambda inputs: random(units, inputs, output_dim, sparsity_level, random_seed))


def NCP(
    inter_neurons: int,
    command_neurons: int,
    motor_neurons: int,
    sensory_fanout: int,
    inter_fanout: int,
    recurrent_command_synapses: int,
    motor_fanin: int,
    seed: int = 22222,
) -> WiringOf:
    """The same as `ncps.wirings.NCP`."""
    sizes = inter_neurons, command_neurons, motor_neurons, sensory_fanout, inter_fanout
    return WiringOf(lambda inputs: ncp(inputs, *sizes, recurrent_command_synapses, motor_fanin, seed))


def AutoNCP(units: int, output_size: int, sparsity_level: float = 0.5, seed: int = 22222) -> WiringOf:
    """The same as `ncps.wirings.AutoNCP`."""
    return WiringOf(lambda inputs: auto_ncp(units, inputs, output_size, sparsity_level, seed))


def wiring_of(units: Any, input_size: int) -> Wiring | None:
    """The wiring that an argument `units` means: None if it is a number.

    Args:
        units: Neurons, a wiring of this package, or an object of `ncps.wirings`.
        input_size: D.

    Raises:
        UsageError: If it is none of these.
    """
    if isinstance(units, int):
        return None
    if isinstance(units, Wiring | WiringOf):
        return units if isinstance(units, Wiring) else units.build(input_size)
    if not hasattr(units, "sensory_adjacency_matrix"):
        raise UsageError(f"units: expected a number or a wiring, got {type(units).__name__}")
    units.build(input_size)
    ids = [list(units.get_neurons_of_layer(number)) for number in range(units.num_layers)]
    layers = tuple(range(one[0], one[-1] + 1) for one in ids)
    adjacency, sensory = (np.asarray(one, np.int8) for one in (units.adjacency_matrix, units.sensory_adjacency_matrix))
    return Wiring(adjacency, sensory, layers, units.output_dim or units.units)


class MemoryCell(nn.Module):
    """The LSTM that `mixed_memory` puts before a liquid layer, with the parameters of `ncps.torch`.

    Source:
        Lechner, Hasani 2020, arXiv:2006.04418.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_map = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent_map = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        for linear in (self.input_map, self.recurrent_map):
            nn.init.orthogonal_(linear.weight) if linear is self.recurrent_map else nn.init.xavier_uniform_(
                linear.weight
            )
        nn.init.uniform_(self.input_map.bias, -0.1, 0.1)

    def forward(
        self, mapped: Float[Tensor, "B four_N"], h: Float[Tensor, "B N"], c: Float[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        """State and memory after one token, from its mapped inputs."""
        new, write, keep, out = (mapped + self.recurrent_map(h)).chunk(4, dim=1)
        c = c * torch.sigmoid(keep + 1.0) + torch.tanh(new) * torch.sigmoid(write)
        return torch.tanh(c) * torch.sigmoid(out), c


class _Rnn(nn.Module):
    """What `LTC` and `CfC` have in common: shapes, states, elapsed times, and weights of ncps."""

    rnn_cell: LiquidLayer

    def _finish(
        self, cell: LiquidLayer, mixed: bool, proj_size: int | None, sequences: bool, batch_first: bool
    ) -> None:
        self.rnn_cell, self.return_sequences, self.batch_first = cell, sequences, batch_first
        self.input_size, self.state_size, self.proj_size = cell.input_size, cell.hidden_size, proj_size
        self.output_size, self.use_mixed = cell.output_size, mixed
        self.fc = nn.Identity() if proj_size is None else nn.Linear(cell.output_size, proj_size)
        if mixed:
            self.lstm = MemoryCell(cell.input_size, cell.hidden_size)
        # States of wired CfC run from inter to motor neurons in ncps, from motor neurons on in this package.
        layers = cell.neurons if isinstance(cell, ClosedFormLayer) else (range(cell.hidden_size),)
        order = torch.tensor([neuron for layer in layers for neuron in layer])
        self.register_buffer("_order", order, persistent=False)
        self._order: Tensor
        self.register_load_state_dict_pre_hook(_load_ncps)

    def forward(
        self, input: Tensor | PackedSequence, hx: State = None, timespans: Tensor | float | None = None
    ) -> tuple[Any, State]:
        """Read sequences.

        Args:
            input: (B, T, D); (T, B, D) if not batch_first; (T, D) for one sequence; or packed.
            hx: State before the first token; zeros if None.
            timespans: Time from each token to the next: a number, or of the shape of `input` with or without a last
                axis of size 1; 1 if None.

        Returns:
            Outputs of all tokens, or of the last alone without `return_sequences`; and the state after the last.

        Raises:
            UsageError: If a shape does not fit.
        """
        packed = input if isinstance(input, PackedSequence) else None
        u, mask = (input, None) if packed is None else _padded(packed)
        assert isinstance(u, Tensor)
        single, time_first = u.ndim == 2, packed is None and not self.batch_first and u.ndim == 3
        u = u[None] if single else u.transpose(0, 1) if time_first else u
        time = _timespans(timespans, u, single, time_first)
        y, state = self._read(u, self._state(hx, u, single), time, mask)
        last = self._last(y, mask)
        out: Any = self.fc(y if self.return_sequences else last)
        if packed is not None and self.return_sequences and mask is not None:
            out = pack_padded_sequence(out, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        elif single:
            out = out[0]
        elif time_first and self.return_sequences:
            out = out.transpose(0, 1)
        state = tuple(part[0] for part in state) if single else state
        return out, state if self.use_mixed else state[0]

    def _state(self, hx: State, u: Tensor, single: bool) -> tuple[Tensor, ...]:
        count = 2 if self.use_mixed else 1
        if hx is None:
            return (u.new_zeros(u.shape[0], self.state_size),) * count
        parts = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        shape = (self.state_size,) if single else (u.shape[0], self.state_size)
        if len(parts) != count or any(tuple(part.shape) != shape for part in parts):
            got = ", ".join(str(tuple(part.shape)) for part in parts)
            raise UsageError(f"hx: expected {count} of {shape}, got {got}")
        return tuple(part[None] if single else part for part in parts)

    def _read(
        self, u: Float[Tensor, "B T D"], state: tuple[Tensor, ...], time: Tensor, mask: Bool[Tensor, "B T"] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        cell, (h, *memory) = self.rnn_cell, state
        x = torch.empty_like(h)
        x[:, self._order] = h
        if not memory:
            y, x = cell(u, x, time, mask)
            return y.to(u.dtype), (x[:, self._order].to(u.dtype),)
        drive, mapped, (c,) = cell.project(u), self.lstm.input_map(u), memory
        outputs = []
        for t in range(u.shape[1]):
            h, after = self.lstm(mapped[:, t], x[:, self._order], c)
            x_after = torch.empty_like(x)
            x_after[:, self._order] = h
            x_after = cell.step(drive[:, t], x_after, time[:, t, None])
            real = torch.ones_like(x[:, :1], dtype=torch.bool) if mask is None else mask[:, t, None]
            x, c = torch.where(real, x_after, x), torch.where(real, after, c)
            outputs.append(cell.readout(x))
        return torch.stack(outputs, dim=1), (x[:, self._order], c)

    def _last(self, y: Float[Tensor, "B T O"], mask: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B O"]:
        return y[:, -1] if mask is None else y[torch.arange(len(y), device=y.device), mask.sum(1) - 1]

    def _converted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict of one of `ncps.torch`."""
        cell = {name: value for name, value in weights.items() if name.startswith("rnn_cell.")}
        rest = {name: value for name, value in weights.items() if name.split(".")[0] in ("lstm", "fc")}
        loaded = layer_from_ncps(cell, **self._loading()).state_dict()
        return {f"rnn_cell.{name}": value for name, value in loaded.items()} | rest

    def _loading(self) -> dict[str, Any]:
        raise NotImplementedError

    def ncps_state_dict(self) -> dict[str, Tensor]:
        """The weights by their names in `ncps.torch`, for `load_state_dict` of its class with these arguments."""
        constraints = self._loading().get("constraints")
        cell = {f"rnn_cell.{name}": value for name, value in layer_to_ncps(self.rnn_cell, constraints).items()}
        rest = {name: value for name, value in self.state_dict().items() if name.split(".")[0] in ("lstm", "fc")}
        return cell | rest


class LTC(_Rnn):
    """`ncps.torch.LTC`: a liquid time-constant layer with one sigmoid per synapse.

    Args:
        input_size: D, features of a token.
        units: Neurons, or a wiring.
        return_sequences: Whether all outputs are returned, or the last alone.
        batch_first: Whether inputs are (B, T, D) or (T, B, D).
        mixed_memory: Whether an LSTM stands before the layer; the state is then a pair.
        input_mapping: "affine", "linear" or None: which of a scale and a shift of the inputs are learned.
        output_mapping: The same of the outputs.
        ode_unfolds: Solver sub-steps of a token.
        epsilon: Accepted; divisors are positive here without it.
        implicit_param_constraints: How weights of ncps are read and written: through softplus, or as they are. Here
            they are learned through softplus always, and there is nothing to apply after a step.

    Example:
        >>> rnn = LTC(20, AutoNCP(28, 4))
        >>> output, hn = rnn(torch.randn(2, 3, 20), torch.zeros(2, 28))
        >>> output.shape, hn.shape
        (torch.Size([2, 3, 4]), torch.Size([2, 28]))
    """

    def __init__(
        self,
        input_size: int,
        units: Any,
        return_sequences: bool = True,
        batch_first: bool = True,
        mixed_memory: bool = False,
        input_mapping: str | None = "affine",
        output_mapping: str | None = "affine",
        ode_unfolds: int = 6,
        epsilon: float = 1e-8,
        implicit_param_constraints: bool = True,
    ) -> None:
        super().__init__()
        wiring = wiring_of(units, input_size)
        count = units if wiring is None else wiring.units
        cell = SynapticLTC(input_size, count, wiring=wiring, steps=ode_unfolds, step_size=1 / ode_unfolds)
        for mapping, name in ((input_mapping, "input"), (output_mapping, "output")):
            if mapping not in ("affine", "linear", None):
                raise UsageError(f"{name}_mapping: expected affine, linear or None, got {mapping!r}")
            getattr(cell, f"{name}_scale").requires_grad_(mapping is not None)
            getattr(cell, f"{name}_shift").requires_grad_(mapping == "affine")
        self.implicit_param_constraints = implicit_param_constraints
        self._finish(cell, mixed_memory, None, return_sequences, batch_first)

    def _loading(self) -> dict[str, Any]:
        constraints = "implicit" if self.implicit_param_constraints else "clipped"
        return {"constraints": constraints, "steps": self.rnn_cell.steps, "output_size": self.output_size}


class CfC(_Rnn):
    """`ncps.torch.CfC`: the closed-form layer.

    Args:
        input_size: D, features of a token.
        units: Neurons, or a wiring, whose layers then are closed forms without a backbone.
        proj_size: Width of a linear layer after the outputs, if not None.
        return_sequences: Whether all outputs are returned, or the last alone.
        batch_first: Whether inputs are (B, T, D) or (T, B, D).
        mixed_memory: Whether an LSTM stands before the layer; the state is then a pair.
        mode: "default", "pure" or "no_gate".
        activation: Of the backbone: lecun_tanh, tanh, relu, silu or gelu.
        backbone_units: Width of the backbone, 128 if None.
        backbone_layers: Its layers, 1 if None.
        backbone_dropout: 0 or None; the layers of this package have no dropout inside.

    Raises:
        UsageError: If a backbone is given with a wiring, or with dropout.
    """

    def __init__(
        self,
        input_size: int,
        units: Any,
        proj_size: int | None = None,
        return_sequences: bool = True,
        batch_first: bool = True,
        mixed_memory: bool = False,
        mode: Any = "default",
        activation: Any = "lecun_tanh",
        backbone_units: int | None = None,
        backbone_layers: int | None = None,
        backbone_dropout: float | None = None,
    ) -> None:
        super().__init__()
        wiring = wiring_of(units, input_size)
        if wiring is not None and (backbone_units, backbone_layers, backbone_dropout) != (None, None, None):
            raise UsageError("a wired CfC has no backbone: leave out backbone_units, backbone_layers, backbone_dropout")
        if backbone_dropout:
            raise UsageError("backbone_dropout is not supported: put nn.Dropout on the outputs")
        sizes: dict[str, Any] = {"backbone_units": 128 if backbone_units is None else backbone_units}
        sizes["backbone_layers"] = 1 if backbone_layers is None else backbone_layers
        count = units if wiring is None else wiring.units
        more: dict[str, Any] = {"mode": mode, "activation": activation, "wiring": wiring, "steps": 1, "step_size": 1.0}
        self.mode, self.activation = mode, activation
        self._finish(
            ClosedFormLayer(input_size, count, **more, **sizes), mixed_memory, proj_size, return_sequences, batch_first
        )

    def _loading(self) -> dict[str, Any]:
        return {"mode": self.mode, "activation": self.activation}


def _load_ncps(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before `load_state_dict`: weights of ncps below a prefix become ours."""
    assert isinstance(module, _Rnn)
    theirs = ("gleak", "ff1.weight")
    names = [name for name in weights if name.startswith(f"{prefix}rnn_cell.")]
    if not any(name.endswith(theirs) for name in names):
        return
    mine = {name.removeprefix(prefix): weights.pop(name) for name in names}
    weights |= {prefix + name: value for name, value in module._converted(mine).items()}


def _padded(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    u, lengths = pad_packed_sequence(packed, batch_first=True)
    return u, (torch.arange(u.shape[1]) < lengths[:, None]).to(u.device)


def _timespans(timespans: Any, u: Float[Tensor, "B T D"], single: bool, time_first: bool) -> Float[Tensor, "B T"]:
    if isinstance(timespans, Tensor):
        longest = 2 if single else 3
        timespans = timespans[..., 0] if timespans.ndim == longest and timespans.shape[-1] == 1 else timespans
        if single and timespans.ndim == 1:
            timespans = timespans[None]
        elif time_first and timespans.ndim == 2:
            timespans = timespans.T
    return broadcast_elapsed(timespans, u.shape[0], u.shape[1], u)
