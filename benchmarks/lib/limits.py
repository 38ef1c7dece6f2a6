"""Peak rates of the processor, measured by two loops in C: bytes read and multiply-adds per second."""

import contextlib
import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

# Without -ffast-math, which would let the compiler reorder sums and merge chains that it proves equal. Ten chains keep
# two units with a latency of four or five cycles busy and fit into sixteen registers.
SOURCE = """
#include <stddef.h>
#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { CHAINS = 10 };
typedef float v __attribute__((vector_size(4 * LANES)));

/* Reads n floats `times` times, split over the threads in aligned parts of a multiple of 128 floats. */
float stream(const float *a, size_t n, long times, int threads) {
  float total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total)
  for (int t = 0; t < threads; ++t) {
    size_t each = n / threads / 128 * 128;
    const v *p = (const v *)(a + each * t);
    v s[8] = {0};
    for (long k = 0; k < times; ++k)
      for (size_t i = 0; i < each / LANES; i += 8)
        for (int j = 0; j < 8; ++j) s[j] += p[i + j];
    for (int j = 0; j < 8; ++j) for (int l = 0; l < LANES; ++l) total += s[j][l];
  }
  return total;
}

/* Per thread `times` multiply-adds in each lane of each chain. Initial values and factors are read from `a`, so that
   the compiler cannot fold them. */
float arithmetic(const float *a, size_t n, long times, int threads) {
  float total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total)
  for (int t = 0; t < threads; ++t) {
    const v *p = (const v *)a;
    v s[CHAINS], x = p[CHAINS], y = p[CHAINS + 1];
    for (int j = 0; j < CHAINS; ++j) s[j] = p[j];
    for (long k = 0; k < times; ++k)
      for (int j = 0; j < CHAINS; ++j) s[j] = x * s[j] + y;
    for (int j = 0; j < CHAINS; ++j) for (int l = 0; l < LANES; ++l) total += s[j][l];
  }
  return total;
}
int lanes(void) { return LANES * CHAINS; }
"""
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi", "-w")
LEAST = 1 << 20  # bytes; a smaller array would measure loop overhead and has no room for the chains


class Limits(NamedTuple):
    """Rates of all threads together."""

    bytes_per_second: float
    multiplications_per_second: float


def build(folder: Path) -> Path | None:
    """Compile the loops into a shared library; None without a suitable C compiler."""
    source, built = folder / "limits.c", folder / "limits.so"
    source.write_text(SOURCE)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, str(source), "-o", str(built)], check=True)
    return built if built.exists() else None


def limits(size: int, threads: int, rounds: int = 9) -> Limits | None:
    """Best of several rounds, reading an array of `size` bytes repeatedly; None without a C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        if built is None:
            return None
        library = ctypes.CDLL(str(built))
    count = max(size, LEAST) // 4 // (128 * threads) * 128 * threads
    values = torch.rand(count + 16) + 0.1  # chains converge to y / (1 - x): no infinities, no denormals
    values[: 16 * 16] *= 0.5
    start = (-values.data_ptr() % 64) // 4
    address, floats = ctypes.c_void_p(values[start:].data_ptr()), ctypes.c_size_t(count)

    def best(function: Callable[..., float], times: int) -> float:
        taken = []
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            function(address, floats, ctypes.c_long(times), ctypes.c_int(threads))
            taken.append((time.perf_counter() - begin) / times)
        return min(taken[1:])

    reads = max(1, (1 << 29) // (4 * count))
    return Limits(
        4 * count / best(library.stream, reads), library.lanes() * threads / best(library.arithmetic, 1_000_000)
    )
