"""What the processor can do at most: bytes read and numbers multiplied per second, measured by two loops in C.

python benchmarks/limits.py [--megabytes 7] [--threads 2]
"""

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

# No -ffast-math: it would let the compiler reorder sums, and merge chains that it can prove equal. Ten chains keep two
# units with a latency of four or five cycles busy, and fit into sixteen registers.
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

/* Reads n floats `times` times; each thread its part of them. Parts are whole numbers of 128 floats, and aligned. */
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

/* On each thread `times` multiplications and additions in each lane of each chain. What chains start from and what they
   are multiplied by is read from `a`, so that the compiler knows nothing about it. */
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
LEAST = 1 << 20  # bytes: a smaller array would measure the loops' ends, and has no room for the chains


class Limits(NamedTuple):
    """Of the given number of threads together."""

    bytes_per_second: float
    multiplications_per_second: float


def build(folder: Path) -> Path | None:
    """The loops as a library, or None where there is no C compiler that takes them."""
    source, built = folder / "limits.c", folder / "limits.so"
    source.write_text(SOURCE)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, str(source), "-o", str(built)], check=True)
    return built if built.exists() else None


def limits(size: int, threads: int, rounds: int = 9) -> Limits | None:
    """The best of some rounds, reading an array of `size` bytes over and over; None without a C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        if built is None:
            return None
        library = ctypes.CDLL(str(built))
    count = max(size, LEAST) // 4 // (128 * threads) * 128 * threads
    values = torch.rand(count + 16) + 0.1  # chains tend to y / (1 - x): nothing infinite, nothing denormal
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=7.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    found = limits(int(options.megabytes * 1e6), options.threads)
    print(json.dumps(None if found is None else found._asdict()))


if __name__ == "__main__":
    main()
