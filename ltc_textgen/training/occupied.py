"""Directories that a run must not be written into."""

import json
from pathlib import Path

from ltc_textgen.errors import UsageError
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.metrics import METRICS

STARTED = "training.json"
"""What a run of ours leaves in its directory before its first step."""

WEIGHTS = ("*.safetensors", "*.bin")
MODEL = ("config.json", "tokenizer.json")


def refuse_other_run(out: Path, resume: bool) -> None:
    """Keep a run from overwriting another one, or the model of another program.

    Args:
        out: Run directory.
        resume: Whether the run in `out` is to go on.

    Raises:
        UsageError: If `out` holds weights, checkpoints, a loss curve, or a model that is not ours; if the run is to go
            on, only if there is something to lose and no checkpoint to go on from.
    """
    if list_checkpoints(out):
        if resume:
            return
        raise UsageError(f"{out} holds a run already: go on with it by --resume, or choose another --out")
    weights = sorted(path.name for pattern in WEIGHTS for path in out.glob(pattern))
    started = (out / STARTED).exists()
    foreign = [] if started else [*weights, *(name for name in MODEL if (out / name).exists())]
    if foreign:
        raise UsageError(f"{out} holds a model already ({foreign[0]}), and no run to go on with: choose another --out")
    if resume and (weights or _was_validated(out / METRICS)):
        raise UsageError(
            f"{out} holds a run that cannot go on: its checkpoints are gone, and starting over would overwrite "
            f"{weights[0] if weights else METRICS}; choose another --out"
        )
    if not resume and (weights or _has_content(out / METRICS)):
        raise UsageError(f"{out} holds a run already: go on with it by --resume, or choose another --out")


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _was_validated(metrics: Path) -> bool:
    """Whether a loss curve reaches a validation, after which there were weights. Before it there is little to lose."""
    if not metrics.exists():
        return False
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("val_loss") is not None:
            return True
    return False
