"""Reading files that may be damaged or foreign: JSON objects, safetensors, checksums."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ltc_textgen.errors import ArtifactError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.io.hashing import sha256_file as sha256_file
from ltc_textgen.shapes import Tensor

DEEPEST = 64
"""Levels of nesting in JSON and TOML, far more than any file of a run has."""

PICKLES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "weights.pt", "ltc_weights.pth")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically."""
    write_atomic(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: If there is none, or it is not JSON; the message names the file and the line.
    """
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path} is damaged: it is not a regular file")
        content = json.loads(path.read_text(encoding="utf-8"))
        require_shallow(content)
    except FileNotFoundError:
        raise ArtifactError(f"{path.parent} is not a run directory: it has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise ArtifactError(f"{path} is damaged: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is damaged: expected a JSON object, got {type(content).__name__}")
    return content


def require_shallow(content: Any) -> None:
    """Check that lists and objects are nested at most `DEEPEST` deep: what reads them recurses.

    Raises:
        ValueError: If they are nested deeper.
    """
    level = [content]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")


@contextmanager
def open_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """A safetensors file opened for reading, at any path: the library rejects those that are not UTF-8.

    Args:
        path: The file.
        framework: Of the arrays: pt or np.

    Raises:
        safetensors.SafetensorError: If it is none.
        OSError: If it cannot be opened.
    """
    from safetensors import safe_open

    with ExitStack() as stack:
        try:
            str(path).encode()
        except UnicodeEncodeError:  # another name of the open file, in ASCII
            path = Path(f"/dev/fd/{stack.enter_context(path.open('rb')).fileno()}")
        yield stack.enter_context(safe_open(path, framework=framework))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header fields of a safetensors file; never anything pickled."""
    from safetensors import SafetensorError

    if not path.is_file():
        pickled = [name for name in PICKLES if (path.parent / name).exists()]
        advice = "; pickled weights are rejected: convert them with safetensors.torch.save_file" if pickled else ""
        raise ArtifactError(f"{path.parent} has no {path.name}{', only ' + pickled[0] if pickled else ''}{advice}")
    try:
        with open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or not a safetensors file: {error}") from None


def write_manifest(directory: Path, extra: Mapping[str, Any]) -> None:
    """Record the SHA-256 of every file in `directory`, and `extra`, in manifest.json: the last file to be written."""
    files = {path.name: sha256_file(path) for path in sorted(directory.iterdir()) if path.name != "manifest.json"}
    write_json(directory / "manifest.json", {"files": files, **extra})


def verify_manifest(directory: Path) -> dict[str, Any]:
    """Check every file of `directory` against its manifest and return the manifest.

    Raises:
        ArtifactError: If the manifest is missing, or a file is missing or has other bytes; the message names it.
    """
    manifest = read_json(directory / "manifest.json")
    for name, expected in manifest.get("files", {}).items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing, though the manifest lists it")
        if sha256_file(path) != expected:
            raise ArtifactError(f"{path} is damaged: its checksum is not that of the manifest")
    return manifest
