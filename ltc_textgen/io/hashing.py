"""SHA-256 digests of files, texts, tensors and model settings, in hexadecimal."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltc_textgen.config import ModelConfig
from ltc_textgen.settings import RENAMED

if TYPE_CHECKING:
    from torch import nn

    from ltc_textgen.shapes import Tensor

ORIGINAL: Mapping[str, str] = {now: before for before, now in RENAMED.items()}
"""Settings that were renamed -> their names in the first version."""


def sha256_file(path: Path) -> str:
    """Digest of a file's bytes.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_texts(texts: Iterable[str]) -> str:
    """Digest of texts in UTF-8, each preceded by its length, so that their borders count."""
    sha = hashlib.sha256()
    for text in texts:
        content = text.encode()
        sha.update(len(content).to_bytes(8, "little") + content)
    return sha.hexdigest()


def sha256_json(content: Mapping[str, Any]) -> str:
    """Digest of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def own_tensors(model: "nn.Module") -> "dict[str, Tensor]":
    """The tensors of a `LiquidNetwork` on the CPU, those that are tied to another left out."""
    settings, tied = getattr(model, "settings", None), getattr(model, "_tied_weights_keys", {})
    tied = tied if isinstance(settings, ModelConfig) and settings.tie_embeddings else {}
    return {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in tied}


def digest(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, types, shapes and bytes of tensors."""
    import torch

    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def fingerprint(settings: ModelConfig) -> str:
    """SHA-256 of the settings that are not at their defaults, under their first names.

    So neither a setting added later nor one renamed changes a fingerprint.
    """
    content = settings.model_dump(mode="json", exclude_defaults=True)
    content = {ORIGINAL.get(name, name): value for name, value in content.items()}
    return sha256_json(content)
