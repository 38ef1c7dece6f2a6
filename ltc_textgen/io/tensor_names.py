"""Names of tensors in files that earlier versions wrote."""

import re
from collections.abc import Mapping

from ltc_textgen.shapes import Tensor

RENAMED: Mapping[str, str] = {
    r"^embedding\.": "embed_tokens.",
    r"^head\.": "lm_head.",
    r"^columns\.": "conv_state.",
    r"\.start\.columns": ".start.conv_state",
}
"""Pattern in a name of an earlier version -> its replacement."""

_ORIGINAL = {r"^embed_tokens\.": "embedding.", r"^lm_head\.": "head.", r"\.start\.conv_state": ".start.columns"}


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names that they have today."""
    return {_replaced(name, RENAMED): tensor for name, tensor in tensors.items()}


def original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model under the names of the first version, from which fingerprints are made."""
    return {_replaced(name, _ORIGINAL): tensor for name, tensor in tensors.items()}


def _replaced(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name
