"""Checkpoints: directories that are written whole or not at all, and validated before they are used.

    checkpoints/step-00001200/
        model.safetensors       weights of this step
        best.safetensors        the best weights so far (a hard link to the run's model.safetensors where possible)
        optimizer.safetensors   moments of the optimizer, by parameter name
        state.safetensors       the recurrent state of every batch row
        random.safetensors      torch's generators, by rank
        progress.json           step, seconds, losses, position in metrics.jsonl, Python's and numpy's generators
        manifest.json           SHA-256 of each of them, and of the configuration, the tokenizer and the corpus

Written into a temporary directory, synced, renamed into place, and only then are old ones removed. Nothing is
pickled, so a checkpoint from a stranger cannot run code. The second half of the module converts between the objects of
a running training and the named tensors of a checkpoint.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltc_textgen.errors import ArtifactError, LTCError
from ltc_textgen.io.atomic import move_directory, sync
from ltc_textgen.io.checked import read_json, read_tensors, sha256_file, verify_manifest, write_json
from ltc_textgen.io.hashing import sha256_json
from ltc_textgen.io.tensor_names import current_names
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Tensor
from ltc_textgen.training.progress import Progress
from ltc_textgen.training.random_states import load_random_states as load_random_states
from ltc_textgen.training.random_states import load_torch_random_states as load_torch_random_states
from ltc_textgen.training.random_states import random_states as random_states
from ltc_textgen.training.random_states import seed_everything as seed_everything
from ltc_textgen.training.random_states import torch_random_states as torch_random_states

CHECKPOINTS = "checkpoints"
PARTS = ("model", "optimizer", "state", "random")
PROGRESS = "progress.json"
MANIFEST = "manifest.json"
BEST = "best.safetensors"
FORMER_STATE = "lanes.safetensors"
"""What earlier versions called state.safetensors."""

_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"
_SET_ASIDE = f"{_TEMPORARY}old-"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: named tensors of each of `PARTS`, and the progress record."""

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    progress: dict[str, Any]


def write_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    progress: Mapping[str, Any],
    *,
    best: Path | None = None,
    about: Mapping[str, Any] | None = None,
    keep: int = 2,
    keep_best: int = 0,
) -> Path:
    """Save a checkpoint and remove those that need not be kept.

    Args:
        run: Run directory.
        step: Optimizer steps done.
        tensors: Named tensors on the CPU for each of `PARTS`.
        progress: What goes into progress.json; JSON values only.
        best: File of the best weights so far, kept with the checkpoint.
        about: What goes into the manifest besides the checksums; a number under "val_loss" is the validation loss of
            these very weights.
        keep: Newest checkpoints that remain, this one included. (One of a later step was skipped as damaged on
            resuming; it is removed.)
        keep_best: Older ones that remain as well, by lowest "val_loss".

    Raises:
        LTCError: If a number among the weights, moments or states is not finite (nothing is written), or the disk
            is full or read-only (earlier checkpoints remain, the temporary directory does not).
    """
    reject_non_finite(step, tensors)
    parent = run / CHECKPOINTS
    target = parent / f"step-{step:08d}"
    temporary = parent / f"{_TEMPORARY}{target.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_files(temporary, tensors, progress, best, about or {})
        # There is one if it was skipped as damaged on resuming, or a validation on resuming has made it out of date.
        move_directory(temporary, target, _aside(target))
    except (OSError, LTCError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LTCError(
            f"{target}: the checkpoint could not be written ({reason}); "
            f"{_what_remains(parent)}. Free space or give write permission, then continue with --resume"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _not_kept(list_checkpoints(run), target, keep, keep_best):
        with suppress(OSError):  # the new one is safe; an old one too many does no harm
            _remove(old)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint directories of a run, newest first, complete or not."""
    parent = run / CHECKPOINTS
    found = [path for path in parent.iterdir() if _NAME.fullmatch(path.name)] if parent.is_dir() else []
    return sorted(found, key=_step, reverse=True)


def newest_checkpoint(run: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is complete and undamaged, or None if there are none at all.

    Args:
        run: Run directory.
        report: Called with one line about each checkpoint that is rejected and skipped.

    Raises:
        ArtifactError: If there are checkpoints and every one is damaged; the message names the newest one's fault.
    """
    faults = []
    for path in list_checkpoints(run):
        try:
            return read_checkpoint(path)
        except ArtifactError as error:
            faults.append(str(error))
            report(f"checkpoint rejected: {error}; trying the one before")
    if faults:
        raise ArtifactError(f"{run}: no checkpoint can be used; {faults[0]}")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint after checking every byte of it.

    Raises:
        ArtifactError: If a file is missing, altered or unreadable; the message names it.
    """
    manifest = read_json(path / MANIFEST)
    seal = manifest.pop("sha256", None)
    # The first format had no checksum of its own.
    if manifest.get("format") not in ("1", "2") or (manifest["format"] == "2" and seal != sha256_json(manifest)):
        raise ArtifactError(f"{path / MANIFEST} is damaged: its checksum does not match, or it is of a later version")
    listed = manifest.get("files")
    files = {part: f"{part}.safetensors" for part in PARTS}
    if isinstance(listed, dict) and FORMER_STATE in listed:
        files["state"] = FORMER_STATE
    missing = {*files.values(), PROGRESS} - set(listed if isinstance(listed, dict) else {})
    if missing:
        raise ArtifactError(f"{path / 'manifest.json'} is damaged: it does not list {min(missing)}")
    verify_manifest(path)
    tensors = {part: current_names(read_tensors(path / name)[0]) for part, name in files.items()}
    return Checkpoint(path, tensors, read_json(path / PROGRESS))


def recorded_progress(run: Path) -> Progress:
    """Progress of the newest checkpoint of a run; of a beginning if there is none.

    Raises:
        ArtifactError: If its progress.json is damaged.
    """
    found = list_checkpoints(run)
    return Progress.from_dict(read_json(found[0] / PROGRESS).get("progress", {})) if found else Progress()


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left half written. Only the holder of the run's lock may call this.

    A checkpoint that was set aside for a new one of its step, which was never moved into place, is put back.
    """
    parent = run / CHECKPOINTS
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        if not path.name.startswith(_TEMPORARY):
            continue
        name, kept = path.name.removeprefix(_SET_ASIDE), list_checkpoints(run)
        if _NAME.fullmatch(name) and (not kept or _step(parent / name) > _step(kept[0])):
            path.rename(parent / name)
        else:
            shutil.rmtree(path, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no hard links.

    A link is safe here because the files of a run are only ever replaced, never written into.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def reject_non_finite(step: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Reject tensors that hold NaN or infinity.

    Raises:
        LTCError: Naming the first such tensor.
    """
    for part in PARTS:
        for name, tensor in tensors[part].items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise LTCError(
                    f"step {step}: {part}: {name} holds numbers that are not finite, so no checkpoint was written; "
                    "continue from the one before with --resume and a lower train.learning_rate"
                )


def _not_kept(newest_first: list[Path], written: Path, keep: int, keep_best: int) -> list[Path]:
    now = newest_first.index(written)
    older = newest_first[now + keep :]
    losses = {path: loss for path in older if (loss := _validation_loss(path)) is not None}
    best = sorted(losses, key=losses.__getitem__)[:keep_best]
    return newest_first[:now] + [path for path in older if path not in best]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _validation_loss(path: Path) -> float | None:
    try:
        loss = read_json(path / MANIFEST).get("val_loss")
    except ArtifactError:
        return None
    return float(loss) if isinstance(loss, int | float) else None


def _write_files(
    directory: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    progress: Mapping[str, Any],
    best: Path | None,
    about: Mapping[str, Any],
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for part in PARTS:
        path = directory / f"{part}.safetensors"
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors[part].items()}, path)
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(str(error)) from None
        sync(path)
    record = directory / PROGRESS
    record.write_text(json.dumps(progress, sort_keys=True, allow_nan=False), encoding="utf-8")
    sync(record)
    if best is not None:
        link_or_copy(best, directory / BEST)
    files = {path.name: sha256_file(path) for path in sorted(directory.iterdir())}
    manifest = {**about, "format": "2", "files": files}
    write_json(directory / MANIFEST, manifest | {"sha256": sha256_json(manifest)})
    sync(directory)


def _remove(path: Path) -> None:
    """Remove a checkpoint in two steps, so that a crash in between leaves no half of one under its name."""
    shutil.rmtree(_aside(path), ignore_errors=True)
    shutil.rmtree(path.rename(_aside(path)), ignore_errors=True)


def _aside(path: Path) -> Path:
    """The name of a checkpoint that is being replaced or removed; `remove_leftovers` knows it."""
    return path.with_name(f"{_SET_ASIDE}{path.name}")


def _what_remains(parent: Path) -> str:
    remaining = list_checkpoints(parent.parent)
    return f"{remaining[0].name} is intact" if remaining else "there is none before it"


MOMENTUM = "momentum"
"""The only moment of a matrix that Muon moves; AdamW has none of this name."""
STEP = "step"
ADAM_MOMENTS = {STEP, "exp_avg", "exp_avg_sq"}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers on the CPU; one with two names is held once."""
    saved = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in saved.items():
        first.setdefault(id(tensor), name)
    return {name: _copy(saved[name]) for name in first.values()}


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy into the model in place, so that an optimizer still refers to the same parameters.

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
    """The inverse of `optimizer_tensors`. Parameters whose moments are of another optimizer start from zero.

    Everything is validated before the optimizer is changed: the compiled update trusts shapes and dtypes, and would
    write past the end of a moment that is shorter than its parameter.

    Raises:
        ArtifactError: If the optimizer has no parameter of a name, or a moment is unknown or missing, or of another
            shape or dtype than its parameter's; the message names it.
    """
    parameters = {
        name: (parameter, bool(group.get("orthogonal")))
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    states: dict[Tensor, dict[str, Tensor]] = {}
    moments: dict[str, set[str]] = {}
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition("/")
        if name not in parameters:
            raise ArtifactError(f"the checkpoint's optimizer holds {name}, which the model does not have")
        parameter, orthogonal = parameters[name]
        _check_moment(key, moment, tensor, parameter)
        moments.setdefault(name, set()).add(moment)
        if (moment == MOMENTUM) is orthogonal:
            states.setdefault(parameter, {})[moment] = tensor.clone().to(parameter.device)
    for name, present in moments.items():
        if present not in ({MOMENTUM}, ADAM_MOMENTS):
            raise ArtifactError(f"the checkpoint's optimizer holds only {', '.join(sorted(present))} of {name}")
    optimizer.state.clear()
    optimizer.state.update(states)


def _check_moment(key: str, moment: str, tensor: Tensor, parameter: nn.Parameter) -> None:
    if moment not in {MOMENTUM, *ADAM_MOMENTS}:
        raise ArtifactError(f"the checkpoint's optimizer holds {key}, which is no moment of AdamW or Muon")
    shape, dtype = (torch.Size(), torch.float32) if moment == STEP else (parameter.shape, parameter.dtype)
    if tensor.shape != shape or tensor.dtype != dtype:
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ArtifactError(f"the checkpoint's optimizer: {key} is {found}; expected {dtype} of shape {tuple(shape)}")
    if not bool(tensor.isfinite().all()) or (moment != MOMENTUM and moment != "exp_avg" and bool((tensor < 0).any())):
        raise ArtifactError(f"the checkpoint's optimizer: {key} holds numbers that are negative or not finite")


def batch_row_states(tensors: dict[str, Tensor], expected: LiquidState) -> LiquidState:
    """The recurrent states of all batch rows, validated before a kernel gets them.

    Args:
        tensors: Of a checkpoint.
        expected: Of the model, for as many rows.

    Raises:
        ArtifactError: If a tensor is missing, unknown, of another shape, no floating-point numbers, or not finite.
    """
    ours = expected.tensors()
    for name in sorted(ours.keys() | tensors.keys()):
        theirs = tensors.get(name)
        if theirs is None or name not in ours or theirs.shape != ours[name].shape or not theirs.is_floating_point():
            raise ArtifactError(f"the checkpoint's states do not fit the model and its batch rows: {name}")
        if not bool(theirs.isfinite().all()):
            raise ArtifactError(f"the checkpoint's states: {name} holds numbers that are not finite")
    return LiquidState.from_tensors(tensors)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()
