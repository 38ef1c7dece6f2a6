"""Results that survive an interruption, and the tables and the JSON line that every benchmark script prints."""

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ltc_textgen.kernels import dispatch


def log(message: str) -> None:
    """Progress; standard output holds the result alone."""
    print(message, file=sys.stderr, flush=True)


def print_json(document: Mapping[str, Any]) -> None:
    """The last line of standard output: one JSON document, with null for NaN and infinities."""
    print(f"\n{json.dumps(strict(dict(document)), allow_nan=False)}")


def integers(text: str) -> list[int]:
    """The value of an option such as --seeds 0,1,2."""
    return [int(part) for part in text.split(",")]


def machine() -> dict[str, Any]:
    """The hardware and software that a measurement was made on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": dispatch.report(),
    }


class Results:
    """Results by key, written atomically to a JSON file after each, so that an interrupted sweep resumes."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        self.rows[key] = strict(dict(row))
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_name(self.path.name + ".new")
            fresh.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
            fresh.replace(self.path)


def strict(value: Any) -> Any:
    """The value with None in place of NaN and infinities, which JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    listed = list(values)
    return statistics.mean(listed), statistics.stdev(listed) if len(listed) > 1 else 0.0


def plus_minus(values: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard deviation for a table; "diverged" if a value is not finite."""
    listed = list(values)
    if any(value is None or not math.isfinite(value) for value in listed):
        return "diverged"
    mean, deviation = spread(listed)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}" if len(listed) > 1 else f"{mean:.{digits}f}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])
