"""Pages of memory-mapped token files: handed back to the system once they were read."""

import mmap

import numpy as np


def release_pages(tokens: np.ndarray) -> None:
    """Let go of what was read of a read-only memory map; it is read again from the file, or its cache, when needed.

    Otherwise all that a run has read of a large corpus would count as its resident memory until the system is short of
    it. Does nothing to other arrays, and where the system cannot.
    """
    base: object = tokens
    while isinstance(base, np.ndarray):
        base = base.base
    # Of a private copy, what was written would be lost.
    if isinstance(base, mmap.mmap) and not tokens.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
