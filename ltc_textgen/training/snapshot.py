"""Between the objects of a running training and the named tensors of a checkpoint."""

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from ltc_textgen.errors import ArtifactError
from ltc_textgen.shapes import Tensor

MOMENTUM = "momentum"
"""The only moment of a matrix that Muon moves; AdamW has none of this name."""


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers on the CPU; one that is shared by two names is held once."""
    saved = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in saved.items():
        first.setdefault(id(tensor), name)
    return {name: _copy(saved[name]) for name in first.values()}


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy into the model in place, so that an optimizer keeps its hold on the parameters.

    Raises:
        ArtifactError: If names or shapes are not those of the model.
    """
    expected = model_tensors(model)
    if expected.keys() != tensors.keys():
        name = min(expected.keys() ^ tensors.keys())
        raise ArtifactError(f"the checkpoint is of another model: {name} is in only one of them")
    targets = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, the model has {tuple(expected[name].shape)}"
            raise ArtifactError(f"the checkpoint is of another model: {name} is {shapes}")
        targets[name].copy_(tensor)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter, as "name/moment". The groups must hold the `names` of their parameters."""
    named = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                named[f"{name}/{key}"] = _copy(value)
    return named


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`. Moments of another optimizer are left out: those parameters start afresh.

    Raises:
        ArtifactError: If the optimizer has no parameter of a name.
    """
    parameters = {
        name: (parameter, bool(group.get("orthogonal")))
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    optimizer.state.clear()
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition("/")
        if name not in parameters:
            raise ArtifactError(f"the checkpoint's optimizer holds {name}, which the model does not have")
        parameter, orthogonal = parameters[name]
        if (moment == MOMENTUM) is orthogonal:
            optimizer.state[parameter][moment] = tensor.clone().to(parameter.device)


def random_states() -> dict[str, Any]:
    """Python's and numpy's global generators as JSON values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def load_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def torch_random_states(device: torch.device) -> dict[str, Tensor]:
    """Torch's generators of the CPU and, if the run computes on one, of the GPU."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_torch_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of `torch_random_states`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_everything(seed: int) -> None:
    """Start Python's, numpy's and torch's global generators from one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()
