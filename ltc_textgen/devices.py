"""The device of a model's tensors, and the number of CPU threads."""

import math
import os
from pathlib import Path

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


def cpu_limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> dict[str, float]:
    """How many CPUs this process may use, by what limits them.

    Args:
        root: Where control groups are mounted.
        membership: The groups of this process.

    Returns:
        "cores" of the machine, "affinity" (cores the process may run on) and, where a container has one, "quota" (CPU
        time per time, possibly less than 1).
    """
    limits: dict[str, float] = {"cores": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        limits["affinity"] = len(os.sched_getaffinity(0))
    quotas = [quota for group in _groups(root, membership) if (quota := _quota(group)) is not None]
    return limits | ({"quota": min(quotas)} if quotas else {})


def usable_threads() -> int:
    """Threads that can run at the same time: the least of cores, affinity and quota, at least 1."""
    return max(1, math.floor(min(cpu_limits().values())))


def _groups(root: Path, membership: Path) -> list[Path]:
    """The CPU control group of this process and those above it, under version 1 and version 2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    found = [root, root / "cpu"]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        own = base / path.strip("/")
        found += [own, *(parent for parent in own.parents if base in parent.parents)]
    return list(dict.fromkeys(found))


def _quota(group: Path) -> float | None:
    """CPU time per time that a control group allows; None if it has no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        value = float(quota) / float(period) if quota != "max" else 0.0
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return value if value > 0 else None
