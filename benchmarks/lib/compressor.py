"""PPMd, a text compressor with contexts of a fixed order (pip install pyppmd)."""

import math
import time


def ppmd(train: str, valid: str, order: int, piece: int = 2000) -> dict[str, float]:
    """Nats per character of `valid` by PPMd variant H after `train`, and the seconds of one pass over both.

    Adapting: bits of both texts, less bits of the first. Static: the second text in pieces of `piece` characters, each
    behind the first text alone, so that it hardly adapts.
    """
    import pyppmd

    def bits(text: str) -> int:
        return 8 * len(pyppmd.compress(text.encode(), max_order=order, mem_size=64 << 20, variant="H"))

    before = bits(train)
    start = time.perf_counter()
    adapting = bits(train + valid) - before
    seconds = time.perf_counter() - start
    pieces = [valid[i : i + piece] for i in range(0, len(valid), piece)]
    static = sum(bits(train + text) - before for text in pieces)
    scale = math.log(2) / len(valid)
    return {"static": static * scale, "adapting": adapting * scale, "seconds": seconds}
