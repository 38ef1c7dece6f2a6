"""Device, precision, processes and threads of a run, through `accelerate`, and the rendezvous of its processes.

Only the model and the optimizer are prepared by `accelerate`. The data is not: its sharding hands out whole batches and
repeats samples to even them out, while the batch rows of a recurrent model must stay with their rank.

**Rendezvous for torchrun's elastic restarts: a fresh store prefix per attempt.** Attempts share the launcher's store.
gloo leaves its addresses there, so that a process may read where one of an earlier attempt listened, and the attempt is
lost. The number of an attempt does not help: every machine's launcher counts for itself. So the processes first agree
on a name that no attempt had before, and keep everything under it:

    process r      posts a word of its own under its rank, and waits for an answer under that word
    process 0      answers every word with the new name, until each process has taken that name

A word of an earlier attempt is answered too, and soon overwritten.
"""

import atexit
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
)
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from ltc_textgen.config import TrainConfig
from ltc_textgen.devices import choose_device, usable_threads
from ltc_textgen.errors import LTCError, UsageError
from ltc_textgen.shapes import Tensor
from ltc_textgen.training import distributed

SCHEME = "ltc-attempt"
PATIENCE = timedelta(days=1)
"""How long processes wait while one tokenises or validates a long text."""

_PAUSE = 0.02


def method() -> str | None:
    """The `init_method` of the process group: ours where attempts share a store, else None for PyTorch's default."""
    return f"{SCHEME}://" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None


def agree(store: Store, rank: int, world: int, patience: timedelta = PATIENCE) -> str:
    """A name that all processes of this attempt get, and none of another. Must be called by all.

    Args:
        store: Shared by all processes, and by those of attempts before.
        rank: Of this process.
        world: Number of processes.
        patience: How long to wait for the others.

    Raises:
        LTCError: If they do not arrive in time.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + patience.total_seconds()
    if rank:
        store.set(f"word/{rank}", mine)
        _wait(lambda: store.check([f"answer/{mine}"]), deadline, "process 0")
        name = store.get(f"answer/{mine}").decode()
        store.set(f"took/{name}/{rank}", "")
        return name
    for other in range(1, world):
        _wait(partial(_took, store, other, mine), deadline, f"process {other}")
    return mine


def _took(store: Store, rank: int, name: str) -> bool:
    """Answer the word of a process, if there is one; returns whether it has taken the name."""
    if store.check([f"word/{rank}"]):
        store.set(f"answer/{store.get(f'word/{rank}').decode()}", name)
    return store.check([f"took/{name}/{rank}"])


def _wait(happened: Callable[[], bool], deadline: float, whom: str) -> None:
    while not happened():
        if time.monotonic() > deadline:
            raise LTCError(f"{whom} did not arrive; continue from the last checkpoint with --resume")
        time.sleep(_PAUSE)


def _meet(url: str, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """PyTorch's rendezvous by environment variables, under a store prefix of this attempt."""
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    name = agree(PrefixStore("ltc-meeting", store), rank, world)
    yield PrefixStore(f"ltc-attempt/{name}", store), rank, world


register_rendezvous_handler(SCHEME, _meet)


ANSWER = timedelta(minutes=30)
"""How long processes wait for each other within and between steps. One that hangs longer ends the run; the death of a
process is noticed at once. While one tokenises, validates or writes, the others wait `distributed.PATIENCE`."""

Shared = TypeVar("Shared")


class Runtime:
    """The processes that train one model together, and what this one computes on.

    Args:
        config: Device, precision, threads and trackers are taken from here.
        tracking_dir: Where a tracker that writes files puts them.
        unused_parameters: Whether a step may leave parameters without a gradient. (The clusters of an adaptive
            softmax that a batch has no target in take no part in its backward pass.)

    Raises:
        UsageError: If the device is unknown or absent, or the precision does not exist on it.
    """

    def __init__(
        self, config: TrainConfig, tracking_dir: str | None = None, *, unused_parameters: bool = False
    ) -> None:
        device = choose_device(config.device)
        check_precision(config.mixed_precision, device)
        self.accelerator = _accelerator(config, device, tracking_dir, unused_parameters)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        _reject_lone_process(self.world)
        if config.batch_size % self.world:
            raise UsageError(
                f"train.batch_size: {config.batch_size} rows cannot be divided evenly among {self.world} processes; "
                f"choose a multiple of {self.world}"
            )
        self.threads = self.usable_threads = _set_threads(config.threads, self.world)
        alone = self.world == 1 and self.device.type == "cpu"
        self.chooses_threads = alone and config.threads is None and self.threads > 1
        self._patient = None
        if self.world > 1:
            self._patient = torch.distributed.new_group(timeout=distributed.PATIENCE, backend="gloo")
            atexit.register(self.accelerator.state.destroy_process_group)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def use_threads(self, threads: int) -> None:
        """Compute with so many CPU threads from now on."""
        torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Move the model to the device, wrap its forward in autocast and, with several processes, in DDP."""
        with warnings.catch_warnings():
            # DDP renames an option that accelerate has under the old name only.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return self.accelerator.prepare(model, optimizer)

    def backward(self, loss: Tensor) -> None:
        """`Accelerator.backward` without its search for packages at every step."""
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    def restore_forward(self, model: nn.Module) -> nn.Module:
        """Undo `prepare`: the model itself, whose forward is its own again."""
        return self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def sum(self, values: list[float], *, patiently: bool = False) -> list[float]:
        """The sum of each value over all processes. Must be called by all.

        Args:
            values: As many in each process.
            patiently: Whether a process may take long to call this.
        """
        if self.world == 1:
            return values
        group, device = (self._patient, None) if patiently else (None, _collective_device(self.device))
        together = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(together, group=group)
        return together.tolist()

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The tensors of all processes, one below the other in order of rank, on the CPU. Must be called by all."""
        if self.world == 1:
            return rows.detach().cpu()
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        torch.distributed.all_gather(parts, rows.detach().contiguous())
        return torch.cat(parts).cpu()

    def gather_objects(self, value: object) -> list:
        """One small object of each process, in order of rank. Must be called by all."""
        return gather_object([value]) if self.world > 1 else [value]

    def from_main(self, value: Shared) -> Shared:
        """The main process's `value`; must be called by all. It is pickled: not for untrusted data."""
        if self.world == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0, group=self._patient)
        return held[0]

    def wait(self) -> None:
        """Return when all processes have called this, however long one takes."""
        if self.world > 1:
            torch.distributed.barrier(group=self._patient)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the body in one process of every machine before the others. Must be entered by all."""
        first = self.accelerator.is_local_main_process
        if not first:
            self.wait()
        yield
        if first:
            self.wait()


@contextmanager
def explaining() -> Iterator[None]:
    """Turn the loss of another process into an error of one line.

    Raises:
        LTCError: If another process died or did not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise LTCError(
                f"another process has died, or has not answered for {ANSWER.total_seconds() / 60:g} minutes, so "
                "this one ends too; continue from the last checkpoint with --resume"
            ) from error
        raise


def check_precision(precision: str, device: torch.device) -> None:
    """Reject fp16 on a CPU, which `accelerate` would accept and silently train in float32.

    Raises:
        UsageError: In that case.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("train.mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no")


def _reject_lone_process(world: int) -> None:
    """Reject a process that was launched as one of several but finds itself alone: each would write the same run.

    Raises:
        UsageError: In that case.
    """
    environment = os.environ
    launched = int(environment.get("WORLD_SIZE", "1"))
    # What `accelerate launch --cpu --num_processes 2` leaves: the address of a rendezvous that no other process joins.
    lost = environment.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in environment
    if world == 1 and (launched > 1 or (lost and "WORLD_SIZE" not in environment)):
        raise UsageError(
            "several processes were asked for, but the launcher started this one alone: use "
            "`torchrun --nproc_per_node N -m ltc_textgen train ...`, or `accelerate launch --multi_gpu "
            "--num_processes N -m ltc_textgen train ...`, which serves CPUs too"
        )


def _accelerator(
    config: TrainConfig, device: torch.device, tracking_dir: str | None, unused_parameters: bool
) -> Accelerator:
    # accelerate keeps its settings per process and rejects other ones for a second run in it.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=unused_parameters)
    if device.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=config.mixed_precision,
            log_with=list(config.report_to) or None,
            project_config=ProjectConfiguration(logging_dir=tracking_dir),
            kwargs_handlers=[ddp, InitProcessGroupKwargs(init_method=distributed.method(), timeout=ANSWER)],
        )
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)


def _set_threads(threads: int | None, world: int) -> int:
    """A launcher sets one thread per process; where the user sets none, the cores are divided among the processes."""
    if threads is None and world > 1:
        threads = max(1, usable_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_threads()))
    return torch.get_num_threads()


def _collective_device(device: torch.device) -> torch.device:
    """Where a tensor must lie to take part in a collective: on the GPU under nccl, on the CPU under gloo."""
    return device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
