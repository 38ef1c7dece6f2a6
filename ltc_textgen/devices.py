"""Device selection: where tensors live and how a device is named."""

import torch

from ltc_textgen.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device that `name` means on this machine.

    Args:
        name: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.

    Raises:
        UsageError: If there is no such device here, or no such name.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"device: expected auto, cpu, cuda, cuda:N or mps, got '{name}'")
    present = {"cpu": True, "cuda": cuda and int(number or 0) < torch.cuda.device_count(), "mps": mps}
    if not present[kind]:
        raise UsageError(f"device: there is no {name} here; use auto or cpu")
    return torch.device(name)
