"""Weights of `ncps` 1.0.1 (LTC, LTCCell, CfC, CfCCell, WiredCfCCell) in our layers, with the same outputs.

    layer = layer_from_ncps(torch.load("theirs.pt", weights_only=True))

A state dict holds tensors only. What is not in it has an argument here: how weights were kept positive, the number of
sub-steps, the mode and activation of a CfC.

Two things differ on purpose. Elapsed times of a batch work here (their `timespans` mix up samples and neurons). And
neurons are numbered from the motor neurons in every layer, as in their wirings and LTC, while the state of their wired
CfC runs in the order of the layers, from inter to motor neurons.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.layers.base import LiquidLayer
from ltc_textgen.layers.cfc import Activation, CfC, ClosedForm, Mode
from ltc_textgen.layers.synaptic import SynapticLTC, inverse_softplus
from ltc_textgen.layers.wirings import Wiring
from ltc_textgen.shapes import Tensor

SMALLEST = 1e-12
"""What a clipped weight of zero becomes: softplus reaches zero only at minus infinity."""


class _Weights(dict[str, Tensor]):
    """Tensors by name; a missing one is an error in the file."""

    def __missing__(self, name: str) -> Tensor:
        raise ArtifactError(f"ncps weights: {name} is missing")

    def below(self, prefix: str) -> "_Weights":
        """The tensors whose names start with `prefix` and a dot, without them."""
        start = prefix + "."
        return _Weights({name.removeprefix(start): w for name, w in self.items() if name.startswith(start)})

    def size(self, name: str, *axes: str) -> tuple[int, ...]:
        """The shape of a tensor that must have these axes."""
        if self[name].ndim != len(axes):
            expected = f"({', '.join(axes)})"
            raise ArtifactError(f"ncps weights: {name}: expected {expected}, got {tuple(self[name].shape)}")
        return tuple(self[name].shape)

    def require(self, names: Iterable[str], *shape: int) -> None:
        """Reject tensors of another shape."""
        for name in names:
            if tuple(self[name].shape) != shape:
                raise ArtifactError(f"ncps weights: {name}: expected {shape}, got {tuple(self[name].shape)}")


def layer_from_ncps(
    weights: Mapping[str, Tensor] | nn.Module,
    *,
    constraints: Literal["implicit", "clipped"] | None = None,
    steps: int = 6,
    output_size: int | None = None,
    mode: Mode | None = None,
    activation: Activation = "lecun_tanh",
) -> LiquidLayer:
    """A layer of this package with the weights of a module of ncps.

    Args:
        weights: An ncps.torch LTC, LTCCell, CfC, CfCCell or WiredCfCCell, or its `state_dict()`. Of a state dict whose
            names all begin with one prefix ("module.", "rnn."), the prefix is stripped.
        constraints: LTC: "implicit" if it was made with implicit_param_constraints=True (softplus), "clipped" if with
            False. If None, the default of the class that the weights come from: implicit for LTC, clipped for LTCCell.
        steps: LTC: its ode_unfolds.
        output_size: LTC: its motor neurons. Needed only with output_mapping=None, where the weights do not say.
        mode: CfC: "default" or "no_gate" (their weights look the same), "default" if None; "pure" is recognised.
        activation: CfC: of its backbone.

    Returns:
        A `SynapticLTC` or a `CfC` in the precision of the weights.

    Raises:
        ArtifactError: If the weights are of no such module, use mixed_memory or proj_size, or cannot be its weights:
            a mode or a shape that does not fit, a negative weight where none may be.
    """
    weights = _without_prefix(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    if any(name.startswith("lstm.") for name in weights):
        raise ArtifactError("ncps weights: mixed_memory=True is not supported, it puts an LSTM before the liquid layer")
    if any(name.startswith("fc.") for name in weights):
        raise ArtifactError(
            "ncps weights: proj_size is not supported; remove fc.weight and fc.bias and apply them after"
        )
    bare = _Weights({name.removeprefix("rnn_cell."): tensor.detach() for name, tensor in weights.items()})
    if "gleak" in bare:
        default: Literal["implicit", "clipped"] = "clipped" if "gleak" in weights else "implicit"
        return _synaptic(bare, constraints or default, steps, output_size)
    if "ff1.weight" in bare or "layer_0.ff1.weight" in bare:
        return _closed_form(bare, mode, activation)
    some = ", ".join(sorted(weights)[:3]) or "nothing"
    raise ArtifactError(f"ncps weights: expected an LTC (gleak) or a CfC (ff1.weight), found {some}")


def _without_prefix(weights: Any) -> Mapping[str, Tensor]:
    """The weights by the names that ncps gives them.

    Raises:
        ArtifactError: If they are no tensors by name, or a prefix is not that of all names.
    """
    if not isinstance(weights, Mapping):
        raise ArtifactError(f"ncps weights: expected a module or its state_dict(), got {type(weights).__name__}")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ArtifactError(f"ncps weights: {name}: expected a tensor, got {type(value).__name__}")
    known = [re.fullmatch(r"(.*?)((rnn_cell\.)?(layer_\d+\.)?(gleak|ff1\.weight))", name) for name in sorted(weights)]
    prefixes = {match[1] for match in known if match}
    if not prefixes or prefixes == {""}:
        return weights
    prefix = min(prefixes)
    others = [name for name in weights if not name.startswith(prefix) or prefix == ""]
    if others or len(prefixes) > 1:
        some = ", ".join(sorted(others)[:3])
        raise ArtifactError(
            f"ncps weights: the layer is under {' and '.join(map(repr, sorted(prefixes)))}, next to {some}; keep the "
            "names of one layer, without the prefix"
        )
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def _synaptic(weights: _Weights, constraints: str, steps: int, output_size: int | None) -> SynapticLTC:
    inputs, units = weights.size("sensory_w", "inputs", "neurons")
    outputs = weights.size("output_w", "outputs")[0] if "output_w" in weights else output_size or units
    _require_synapses(weights, inputs, units, outputs)
    adjacency, sensory = (
        _polarity(weights[prefix + "sparsity_mask"], weights[prefix + "erev"]) for prefix in ("", "sensory_")
    )
    wiring = Wiring(adjacency, sensory, (range(units),), outputs)
    layer = SynapticLTC(inputs, units, wiring=wiring, steps=steps, step_size=1 / steps)
    raw = weights.__getitem__ if constraints == "implicit" else partial(_unclipped, weights)
    ours = {"rest": weights["vleak"], "raw_leak": raw("gleak"), "raw_capacitance": raw("cm")}
    for group, prefix in (("recurrent.", ""), ("sensory.", "sensory_")):
        ours |= {group + name: weights[prefix + name] for name in ("sigma", "mu")}
        ours |= {group + "reversal": weights[prefix + "erev"], group + "raw_weight": raw(prefix + "w")}
        ours[group + "mask"] = weights[prefix + "sparsity_mask"] != 0
    for name, size in (("input", inputs), ("output", outputs)):
        ours[f"{name}_scale"] = weights.get(f"{name}_w", torch.ones(size))
        ours[f"{name}_shift"] = weights.get(f"{name}_b", torch.zeros(size))
    layer.to(weights["w"].dtype).load_state_dict(ours)
    return layer


def _require_synapses(weights: _Weights, inputs: int, units: int, outputs: int) -> None:
    """Reject weights of an LTC whose shapes do not fit each other."""
    if not 1 <= outputs <= units:
        raise ArtifactError(f"ncps weights: expected 1 to {units} outputs, got {outputs}")
    weights.require(("gleak", "vleak", "cm"), units)
    for prefix, sources in (("", units), ("sensory_", inputs)):
        weights.require((prefix + name for name in ("w", "sigma", "mu", "erev", "sparsity_mask")), sources, units)
    weights.require(weights.keys() & {"input_w", "input_b"}, inputs)
    weights.require(weights.keys() & {"output_w", "output_b"}, outputs)


def _unclipped(weights: _Weights, name: str) -> Tensor:
    """A weight that ncps keeps positive by clipping, as the argument of the softplus that keeps ours positive.

    Raises:
        ArtifactError: If one that takes part is negative.
    """
    value = weights[name]
    exists = weights[name.replace("w", "sparsity_mask")] != 0 if name.endswith("w") else torch.tensor(True)
    if bool((value[exists.expand_as(value)] < 0).any()):
        raise ArtifactError(
            f"ncps weights: {name} has negative values, which clipped constraints exclude; call "
            "apply_weight_constraints() before saving, or pass constraints='implicit'"
        )
    return inverse_softplus(value.clamp_min(SMALLEST))


def _polarity(mask: Tensor, reversal: Tensor) -> np.ndarray:
    """+1 or -1 where a synapse exists, from the sign of its (possibly trained) reversal potential."""
    signs = torch.where(reversal < 0, -1, 1) * (mask != 0)
    return signs.to(torch.int8).cpu().numpy()


def _closed_form(weights: _Weights, mode: Mode | None, activation: Activation) -> CfC:
    layers = sorted({name.split(".")[0] for name in weights if name.startswith("layer_")})
    parts = [weights.below(layer) for layer in layers] or [weights]
    kind = _mode(parts[0], mode)
    sizes = [part.size("ff1.bias", "neurons")[0] for part in parts]
    backbone = sorted((n for n in parts[0] if n.startswith("backbone.") and n.endswith(".weight")), key=_position)
    units, features = parts[0].size(backbone[0] if backbone else "ff1.weight", "outputs", "inputs + neurons")
    inputs = features - sizes[0]
    for part, size, before in zip(parts, sizes, [inputs, *sizes], strict=False):
        _require_form(part, size, before, units, backbone, kind)
    layer = CfC(
        inputs,
        sum(sizes),
        mode=kind,
        backbone_units=units if backbone else 0,
        backbone_layers=len(backbone),
        activation=activation,
        wiring=_layered_wiring(parts, sizes, inputs) if layers else None,
        steps=1,
        step_size=1.0,
    )
    layer.to(parts[0]["ff1.weight"].dtype)
    for form, part in zip(layer.forms, parts, strict=True):
        _load_form(form, part, [name.removesuffix(".weight") for name in backbone])
    return layer


def _mode(part: _Weights, asked: Mode | None) -> Mode:
    """The mode of a closed form: "pure" shows in its weights, the others do not.

    Raises:
        ArtifactError: If it is not the one asked for.
    """
    pure = "w_tau" in part
    if asked is not None and (asked == "pure") != pure:
        raise ArtifactError(f"ncps weights: mode {asked} does not fit, these are {'' if pure else 'not '}of mode pure")
    return "pure" if pure else asked or "default"


def _require_form(part: _Weights, size: int, inputs: int, units: int, backbone: list[str], mode: Mode) -> None:
    """Reject a closed form whose tensors do not fit each other."""
    if inputs < 1:
        raise ArtifactError(
            f"ncps weights: {backbone[0] if backbone else 'ff1.weight'} leaves no inputs besides the state"
        )
    for name, features in zip(backbone, [inputs + size] + [units] * len(backbone), strict=False):
        part.require([name], units, features)
        part.require([name.removesuffix("weight") + "bias"], units)
    features = units if backbone else inputs + size
    heads = _heads(mode)
    part.require((f"{head}.weight" for head in heads), size, features)
    part.require((f"{head}.bias" for head in heads), size)
    part.require(part.keys() & {"sparsity_mask"}, size, features)
    if mode == "pure":
        part.require(("w_tau", "A"), 1, size)


def _heads(mode: Mode) -> list[str]:
    return ["ff1"] if mode == "pure" else ["ff1", "ff2", "time_a", "time_b"]


def _position(name: str) -> int:
    return int(name.split(".")[1])


def _layered_wiring(parts: list[_Weights], sizes: list[int], inputs: int) -> Wiring:
    """The synapses that reach f1 and f2 of each layer. Polarities are unknown, and without meaning, in a CfC."""
    units = sum(sizes)
    ends = [units - before for before in accumulate(sizes, initial=0)]
    layers = tuple(range(stop, start) for start, stop in pairwise(ends))
    sensory = np.zeros((inputs, units), dtype=np.int8)
    adjacency = np.zeros((units, units), dtype=np.int8)
    before: range | None = None
    for layer, part in zip(layers, parts, strict=True):
        mask = part["sparsity_mask"].T.cpu().numpy().astype(np.int8)[: -len(layer)]
        if before is None:
            sensory[:, layer] = mask
        else:
            adjacency[np.ix_(before, layer)] = mask
        adjacency[np.ix_(layer, layer)] = 1
        before = layer
    return Wiring(adjacency, sensory, layers, len(layers[-1]))


@torch.no_grad()
def _load_form(form: ClosedForm, part: _Weights, backbone: list[str]) -> None:
    heads = _heads(form.mode)
    stacked = {kind: torch.cat([part[f"{head}.{kind}"] for head in heads]) for kind in ("weight", "bias")}
    first = {kind: part[f"{backbone[0]}.{kind}"] for kind in ("weight", "bias")} if backbone else stacked
    form.input.weight.copy_(first["weight"][:, : form.input.in_features])
    form.recurrent_weight.copy_(first["weight"][:, form.input.in_features :])
    form.input.bias.copy_(first["bias"])
    for linear, name in zip(form.backbone, backbone[1:], strict=False):
        linear.load_state_dict({kind: part[f"{name}.{kind}"] for kind in ("weight", "bias")})
    if form.heads is not None:
        form.heads.load_state_dict(stacked)
    if form.mode == "pure":
        form.w_tau.copy_(part["w_tau"][0])
        form.A.copy_(part["A"][0])


def layer_to_ncps(layer: LiquidLayer, constraints: Literal["implicit", "clipped"] | None = None) -> dict[str, Tensor]:
    """The inverse of `layer_from_ncps`: the state dict of an LTCCell, CfCCell or WiredCfCCell of ncps.

    Args:
        layer: A `SynapticLTC` or a `CfC`.
        constraints: Of a `SynapticLTC`: "implicit" for a cell that applies softplus, "clipped" for one that does not;
            implicit if None.

    Raises:
        UsageError: If it is another layer.
    """
    if isinstance(layer, SynapticLTC):
        return _synaptic_to_ncps(layer, constraints == "clipped")
    if not isinstance(layer, CfC):
        raise UsageError(f"ncps has no layer like {type(layer).__name__}: expected a SynapticLTC or a CfC")
    if layer.wiring is None:
        return _form_to_ncps(layer.forms[0])
    named = enumerate(_form_to_ncps(form) for form in layer.forms)
    return {f"layer_{number}.{name}": value for number, form in named for name, value in form.items()}


def _synaptic_to_ncps(layer: SynapticLTC, clipped: bool) -> dict[str, Tensor]:
    positive = F.softplus if clipped else torch.clone
    theirs = {"vleak": layer.rest, "gleak": positive(layer.raw_leak), "cm": positive(layer.raw_capacitance)}
    for group, prefix in ((layer.recurrent, ""), (layer.sensory, "sensory_")):
        theirs |= {prefix + "sigma": group.sigma, prefix + "mu": group.mu, prefix + "erev": group.reversal}
        theirs |= {prefix + "w": positive(group.raw_weight), prefix + "sparsity_mask": group.mask.to(group.mu.dtype)}
    theirs |= {"input_w": layer.input_scale, "input_b": layer.input_shift}
    theirs |= {"output_w": layer.output_scale, "output_b": layer.output_shift}
    return {name: value.detach().clone() for name, value in theirs.items()}


def _form_to_ncps(form: ClosedForm) -> dict[str, Tensor]:
    first = {"weight": torch.cat([form.input.weight, form.recurrent_weight], dim=1), "bias": form.input.bias}
    theirs: dict[str, Tensor] = {}
    stacked = first
    if form.heads is not None:
        stacked = {"weight": form.heads.weight, "bias": form.heads.bias}
        theirs |= {f"backbone.0.{kind}": value for kind, value in first.items()}
        for number, linear in enumerate(form.backbone, start=1):  # an activation stands between two
            theirs |= {f"backbone.{2 * number}.{kind}": value for kind, value in linear.named_parameters()}
    for kind, value in stacked.items():
        theirs |= {
            f"{head}.{kind}": one for head, one in zip(_heads(form.mode), value.split(form.hidden_size), strict=True)
        }
    if form.mode == "pure":
        theirs |= {"w_tau": form.w_tau[None], "A": form.A[None]}
    if form.mask is not None:
        own = torch.ones(form.hidden_size, form.hidden_size, dtype=torch.bool, device=form.mask.device)
        theirs["sparsity_mask"] = torch.cat([form.mask[: form.hidden_size], own], dim=1).to(form.input.weight.dtype)
    return {name: value.detach().clone() for name, value in theirs.items()}
