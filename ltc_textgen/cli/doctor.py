"""`ltc doctor`: versions, devices, kernels, the hub and the cache, with advice on what is missing."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ltc_textgen.cli.common import Json, prepare_torch
from ltc_textgen.io.output import print_json, print_line

EXAMPLES = """Examples:

`ltc doctor`

`ltc doctor --json` (to paste into a bug report)
"""

PACKAGES = ("ltc-textgen", "torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors", "numpy")


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, kernels, the hub and the cache, and what to do where something is missing."""
    prepare_torch("cpu", None)  # what the kernels report is what the other commands use
    report = examine()
    if as_json:
        print_json(report)
        return
    for topic, facts in report.items():
        print_line(topic)
        for name, value in facts.items():
            print_line(f"  {name:<18}{value}")


def examine() -> dict[str, dict[str, Any]]:
    """All results of the command, by topic."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": _machine(),
        "kernels": _kernels(),
        "data": _data(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, Any]:
    import psutil
    import torch

    from ltc_textgen.devices import cpu_limits, usable_threads

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        **{name: f"{value:g}" for name, value in cpu_limits().items()},
        "threads": min(torch.get_num_threads(), usable_threads()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "cuda": ", ".join(gpus) or "none",
        "mps": "yes" if torch.backends.mps.is_available() else "no",
        "bfloat16 on cpu": "fast" if torch.cpu._is_avx512_bf16_supported() else "slow: use --set mixed_precision=no",
        "terminal": "yes" if sys.stderr.isatty() else "no",
    }


def _kernels() -> dict[str, Any]:
    from ltc_textgen.kernels.dispatch import report

    found = dict(report())
    native = not found["cpu"].startswith("none") and found["override"] in ("auto", "cpu")
    decoder = "native, for liquid blocks with the diagonal coupling" if native else "none: PyTorch decodes"
    return {"decoder": decoder, **found}


def _data() -> dict[str, Any]:
    from huggingface_hub import try_to_load_from_cache

    from ltc_textgen.data import hub
    from ltc_textgen.data.token_cache import cache_directory

    problem = hub.Preflight(f"datasets/{hub.WIKITEXT}/resolve/main/README.md").problem()
    cached = hub.may_be_cached(hub.WIKITEXT) and isinstance(try_to_load_from_cache(hub.BERT, "tokenizer.json"), str)
    cache = cache_directory()
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    default = "WikiText-2" if problem is None or cached else "the text inside Python (no hub, nothing cached)"
    return {
        "hub": f"{hub.endpoint()}: {'answers' if problem is None else problem}",
        "wikitext-2": "cached" if cached else "not cached",
        "`ltc train` reads": default,
        "token cache": f"{cache}, {size / 2**20:.1f} MiB",
    }
