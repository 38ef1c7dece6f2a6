"""The global random generators of Python, numpy and torch: seeded, saved with a checkpoint, validated and restored.

numpy reads at the position of a state without looking whether it is one.
"""

import random
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ltc_textgen.errors import ArtifactError
from ltc_textgen.shapes import Tensor

Word = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
PYTHON_WORDS, NUMPY_WORDS = 624, 624
"""Words of the Mersenne Twister; Python appends the position."""

PythonState = tuple[
    Literal[3], Annotated[list[Word], Field(min_length=PYTHON_WORDS + 1, max_length=PYTHON_WORDS + 1)], float | None
]
NumpyState = tuple[
    Literal["MT19937"],
    Annotated[list[Word], Field(min_length=NUMPY_WORDS, max_length=NUMPY_WORDS)],
    Annotated[int, Field(strict=True, ge=0, le=NUMPY_WORDS)],
    Literal[0, 1],
    float,
]


class RandomStates(BaseModel):
    """Python's and numpy's global generators as JSON values."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    python: PythonState
    numpy: NumpyState

    @model_validator(mode="after")
    def _position(self) -> "RandomStates":
        if self.python[1][-1] > PYTHON_WORDS:
            raise ValueError(f"a position of {self.python[1][-1]}")
        return self


def random_states() -> dict[str, Any]:
    """Python's and numpy's global generators as JSON values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def load_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`, of states that `check_record` has validated."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def torch_random_states(device: torch.device) -> dict[str, Tensor]:
    """Torch's generators of the CPU and, if the run computes on one, of the GPU."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_torch_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of `torch_random_states`.

    Raises:
        ArtifactError: If a state is missing, or PyTorch rejects it.
    """
    try:
        torch.set_rng_state(states["cpu"])
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"the checkpoint's random states do not fit: {str(error).splitlines()[0]}") from None


def seed_everything(seed: int) -> None:
    """Start Python's, numpy's and torch's global generators from one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
