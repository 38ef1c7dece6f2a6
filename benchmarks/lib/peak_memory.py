"""Print by how many bytes one training pass of a layer raises the resident memory of this process.

Runs in its own process, because an allocator that has served other work would reuse freed memory.
Argument: JSON with layer ("ncps" or "ours"), batch, tokens, width, steps.
"""

import contextlib
import json
import resource
import sys
from pathlib import Path

import psutil
import torch

from ltc_textgen.benchmarking import Contender, inputs, ncps_ltc
from ltc_textgen.layers import layer_from_ncps


def main() -> None:
    what = json.loads(sys.argv[1])
    torch.manual_seed(0)
    layer = ncps_ltc(what["width"], what["steps"])
    if what["layer"] == "ours":
        layer = layer_from_ncps(layer.state_dict(), steps=what["steps"])
    # Loads code, starts threads and allocates the parameters' gradients, which are not activations.
    Contender("", layer, inputs(1, 1, what["width"])).train()
    measured = Contender("", layer, inputs(what["batch"], what["tokens"], what["width"]))
    before = psutil.Process().memory_info().rss
    reset_peak()
    measured.train()
    print(max(0, peak() - before))


def reset_peak() -> None:
    """Reset the peak resident size of this process (Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
