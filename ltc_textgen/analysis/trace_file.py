"""Arrays in a safetensors file, written and read through memory maps: a trace may be larger than memory.

The format is that of safetensors: eight bytes with the length of a JSON header, the header with type, shape and place
of every array, then the arrays. The library writes only what is in memory.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from ltc_textgen.errors import ArtifactError, LTCError
from ltc_textgen.io.atomic import create_exclusive, sync
from ltc_textgen.io.checked import open_tensors
from ltc_textgen.io.paths import os_reason

TYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of every array by name."""


@contextmanager
def new_arrays(path: Path, layout: Layout, metadata: Mapping[str, str]) -> Iterator[dict[str, np.ndarray]]:
    """Memory-mapped arrays to fill, which become the file when the `with` ends without an error.

    Raises:
        LTCError: If there is no space or no permission; the file is then what it was.
    """
    header, places = _header(layout, metadata)
    end = len(header) + max((stop for _, stop in places.values()), default=0)
    temporary: Path | None = None
    try:
        with create_exclusive(path) as file:
            temporary = Path(file.name)
            file.write(header)
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, instead of a signal at the first write
                os.posix_fallocate(file.fileno(), 0, end)
            file.truncate(end)
        arrays = _mapped(temporary, layout, places, len(header), "r+")
        yield arrays
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise LTCError(f"cannot write {path}: {os_reason(error, temporary)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def open_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file, memory-mapped and read-only, and its metadata.

    Raises:
        ArtifactError: If the file is missing, no safetensors file, truncated, or holds other types; one line.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such trace file")
    try:
        with open_tensors(path, "np") as file:  # validates the header and the size
            metadata = file.metadata() or {}
        with path.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            content = json.loads(raw.read(size))
        content.pop("__metadata__", None)
        layout = {name: (one["dtype"], tuple(one["shape"])) for name, one in content.items()}
        foreign = {kind for kind, _ in layout.values()} - TYPES.keys()
        if foreign:
            raise ArtifactError(f"{path} is not a trace: it holds arrays of type {min(foreign)}")
        places = {name: tuple(one["data_offsets"]) for name, one in content.items()}
        return _mapped(path, layout, places, 8 + size, "r"), metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or not a trace: {str(error).splitlines()[0]}") from None


def _header(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    places, at = {}, 0
    for name, (kind, shape) in sorted(layout.items(), key=lambda item: (-TYPES[item[1][0]].itemsize, item[0])):
        stop = at + TYPES[kind].itemsize * prod(shape)
        content[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, stop]}
        places[name], at = (at, stop), stop
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def _mapped(path: Path, layout: Layout, places: Mapping[str, Any], start: int, mode: Any) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, (kind, shape) in layout.items():
        if prod(shape) == 0:  # nothing can be mapped
            arrays[name] = np.empty(shape, TYPES[kind])
            continue
        arrays[name] = np.memmap(path, TYPES[kind], mode, start + places[name][0], shape)
    return arrays
