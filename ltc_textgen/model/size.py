"""How large a network is, from its settings alone, before anything of it is built.

A configuration comes from a file or from `--set`: a wrong digit, or a stranger, may ask for more memory than there is.
"""

import math
from pathlib import Path

import psutil

from ltc_textgen.config import Coupling, ModelConfig
from ltc_textgen.errors import ArtifactError, UsageError

SMALLEST_NUMBER = 1
"""Bytes of the narrowest type in a weights file."""

TRAINING_COPIES = 4
"""Weights, gradients and two moments, all in float32."""


def least_numbers(settings: ModelConfig) -> int:
    """A lower bound on the parameters and buffers of a network: its large matrices alone."""
    width, neurons = settings.hidden_size, settings.neurons
    layer = neurons * width
    if settings.coupling in (Coupling.full, Coupling.synaptic):
        layer += neurons * neurons
    elif settings.coupling is Coupling.cfc:
        layer = neurons
        if settings.wiring is None and settings.cfc_backbone_layers:
            units = settings.cfc_backbone_units
            layer = units * (neurons + width + (settings.cfc_backbone_layers - 1) * units)
    if settings.block == "liquid":
        layer += 2 * neurons * width
    if settings.tie_embeddings:
        output = 0
    else:  # an adaptive head has narrow matrices, but a rank for every token
        output = settings.vocabulary * (width if settings.head == "full" else 1)
    return settings.input_size * width + settings.num_layers * layer + output


def require_numbers(weights: Path, settings: ModelConfig) -> None:
    """Check that a weights file is large enough to hold a network of these settings, before one is built.

    Raises:
        ArtifactError: If it is not.
    """
    numbers = least_numbers(settings)
    size = weights.stat().st_size
    if size < numbers * SMALLEST_NUMBER:
        raise ArtifactError(
            f"{weights} is damaged or not a safetensors file that fits the configuration: it holds {size:,} bytes, a "
            f"network of these settings has at least {numbers:,} numbers"
        )


def require_memory(settings: ModelConfig) -> None:
    """Check that a network of these settings can be trained in the memory that is available.

    Raises:
        UsageError: If it cannot.
    """
    needed, available = 4 * TRAINING_COPIES * least_numbers(settings), psutil.virtual_memory().available
    if needed > available:
        raise UsageError(
            f"a network of these settings needs at least {math.ceil(needed / 1e9):,} GB of memory to be trained, "
            f"{available / 1e9:.1f} GB are available: choose a smaller hidden_size, num_layers or expansion"
        )
