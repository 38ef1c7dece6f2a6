"""How the processes of one attempt find each other under torchrun, which starts all anew when one has died.

Attempts share the launcher's store. gloo leaves its addresses there, so that a process may read where one of an
attempt before listened, and the attempt is lost. The number of an attempt does not help: every machine's launcher
counts for itself. So the processes first agree on a name that no attempt had before, and keep everything under it.

    process r      posts a word of its own under its rank, and waits for an answer under that word
    process 0      answers whatever word it finds with the new name, until it sees that each process took that name

A word of an attempt before is answered too, to nobody, and is soon overwritten.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from ltc_textgen.errors import LTCError

SCHEME = "ltc-attempt"
PATIENCE = timedelta(days=1)
"""How long processes wait for one that has something long to do: it tokenises or validates a long text."""

_PAUSE = 0.02


def method() -> str | None:
    """The `init_method` of the process group: ours where attempts share a store, else None, which is PyTorch's own."""
    return f"{SCHEME}://" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None


def agree(store: Store, rank: int, world: int, patience: timedelta = PATIENCE) -> str:
    """A name that all processes of this attempt get, and none of another. Must be called by all.

    Args:
        store: Shared by all processes, and by those of attempts before.
        rank: Of this process.
        world: Number of processes.
        patience: How long to wait for the others.

    Raises:
        LTCError: If they do not come.
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
            raise LTCError(f"{whom} did not come; go on from the last checkpoint with --resume")
        time.sleep(_PAUSE)


def _meet(url: str, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """PyTorch's own meeting by environment variables, in a corner of the store that is this attempt's alone."""
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    name = agree(PrefixStore("ltc-meeting", store), rank, world)
    yield PrefixStore(f"ltc-attempt/{name}", store), rank, world


register_rendezvous_handler(SCHEME, _meet)
