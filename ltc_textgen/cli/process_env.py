"""Settings of the whole process for training: a library must not change them, so only the commands call this."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def tune() -> None:
    """Shorten the spinning of OpenMP threads and keep freed memory. Call before torch is imported.

    * OpenMP threads spin for long while they wait for each other. Alone on the machine that is no harm; with another
      program on the same cores it made training fifty times slower. A short spin costs nothing measurable.
    * glibc hands large freed blocks back to the system, which then has to clear them again for the next step: half of
      the time of a layer on large batches. Where there is no glibc, nothing is changed.

    Figures: docs/results.md.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
