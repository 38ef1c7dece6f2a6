"""Steps whose loss or gradient is not finite: skipped, counted, and after too many in a row the end of the run."""

import json
from pathlib import Path

from torch import nn

from ltc_textgen.errors import LTCError
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Int, Tensor
from ltc_textgen.training.checkpoint import model_tensors
from ltc_textgen.training.progress import Progress

LIMIT = 10
"""Skipped steps in a row that end a run. (fp16 halves its loss scale at each, so this covers a factor of 1024.)"""

DUMP = "nonfinite"


class NonFiniteError(LTCError):
    """Training only produces numbers that are not finite. Exit code 1."""


def count(progress: Progress, broken: bool) -> None:
    """Record whether the step that `progress.step` is about to number was skipped."""
    progress.skipped += broken
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if broken else 0


def is_last_chance(progress: Progress) -> bool:
    """Whether the run ends if the next step is not finite."""
    return progress.skipped_in_a_row >= LIMIT - 1


def dump(
    directory: Path,
    model: nn.Module,
    inputs: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    state: LiquidState,
    generators: dict[str, Tensor],
    step: int,
) -> bool:
    """Save what reproduces a step of this process.

    Args:
        directory: Where to; made if need be.
        model: The network after the step, which has left its weights as they were.
        inputs: The window.
        targets: The token after each input.
        state: State of the batch rows before the window.
        generators: torch's generators before the step, from which dropout draws.
        step: Its number.

    Returns:
        Whether that worked; a full disk must not hide why the run ends.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    window = {"inputs": inputs.cpu().contiguous(), "targets": targets.cpu().contiguous()}
    window |= {f"state.{name}": tensor.detach().cpu() for name, tensor in state.tensors().items()}
    broken = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    record = {"step": step, "gradients_not_finite": broken}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(model_tensors(model), directory / "weights.safetensors")
        save_file(window, directory / "window.safetensors")
        save_file(generators, directory / "random.safetensors")
        (directory / "step.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    except (OSError, SafetensorError):
        return False
    return True


def too_many(run: Path, progress: Progress, dumped: bool) -> NonFiniteError:
    """The error that ends a run."""
    first = progress.step - progress.skipped_in_a_row + 1
    where = f"{run / DUMP} reproduces the last" if dumped else f"{run / DUMP} could not be written"
    return NonFiniteError(
        f"{run}: the loss or its gradient was not finite in steps {first} to {progress.step}, so the run was stopped "
        f"and nothing of them was saved ({where}). Continue from the last checkpoint with --resume and a lower "
        "train.learning_rate"
    )
