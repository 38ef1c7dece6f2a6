"""Threads follow the cores, the affinity and the container's quota."""

import os
from pathlib import Path

import pytest

from ltc_textgen import devices


def groups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 0.5),
        ({"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/x\n", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", None),
        ({"cpu.max": "garbage\n"}, "nonsense\n", None),
        ({}, "", None),
    ],
)
def test_quota_of_both_versions(tmp_path: Path, files: dict[str, str], membership: str, quota: float | None) -> None:
    own = tmp_path / "cgroup"
    own.write_text(membership)
    limits = devices.cpu_limits(groups(tmp_path / "root", files), own)
    assert limits.get("quota") == quota
    assert limits["cores"] == os.cpu_count()


@pytest.mark.parametrize(("limits", "threads"), [({"cores": 8, "quota": 0.5}, 1), ({"cores": 8, "affinity": 3}, 3)])
def test_threads_are_the_least_of_all(monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], threads: int) -> None:
    monkeypatch.setattr(devices, "cpu_limits", lambda: limits)
    assert devices.usable_threads() == threads
