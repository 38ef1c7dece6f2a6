"""Time constants in one byte each: tau = 2 ** ((code - 64) / 8), from 1/250 to 14 million tokens; 255 is infinite."""

import base64
import time
from collections.abc import Sequence
from typing import Any

import torch

from ltc_textgen.serve.engine import Neuron
from ltc_textgen.shapes import Float, Shaped, Tensor

INFINITE = 255


def tau_codes(tau: Float[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Codes of time constants in token time, uint8; 0 for NaN.

    >>> tau_codes(torch.tensor([1.0, 2.0, float("inf")])).tolist()
    [64, 72, 255]
    """
    codes = (64 + 8 * tau.clamp_min(1e-30).log2()).round().clamp(1, INFINITE - 1)
    codes = torch.where(tau.isinf(), float(INFINITE), codes)
    return torch.where(tau.isnan(), 0.0, codes).to(torch.uint8)


class TauReport:
    """The time constants that the answer of one request reports.

    Args:
        names: Neurons that are reported for every token.
        neurons: The same, as layer and number.
        sizes: (layers, neurons of each).
        frames_hz: Frames of all neurons per second and choice.
    """

    def __init__(
        self, names: Sequence[str], neurons: Sequence[Neuron], sizes: tuple[int, int], frames_hz: float
    ) -> None:
        count = sizes[1]
        self._names, self._sizes, self._frames_hz = names, sizes, frames_hz
        self._places = torch.tensor([n.layer * count + n.index for n in neurons], dtype=torch.int64)
        self._framed: dict[int, float] = {}

    def document(self, index: int, blocks: Sequence[Float[Tensor, "S neurons"]]) -> dict[str, Any] | None:
        """Codes of some consecutive tokens of a choice: of the chosen neurons, and each layer's median.

        With `frames_hz`, also a frame of all neurons at the last token, in base64, layer after layer.
        """
        if not blocks:
            return None
        tau = torch.cat(list(blocks))
        medians = tau.view(len(tau), *self._sizes).median(dim=2).values
        chosen = tau_codes(tau[:, self._places]).T.tolist()
        document: dict[str, Any] = {
            "neurons": dict(zip(self._names, chosen, strict=True)),
            "median": tau_codes(medians).T.tolist(),
        }
        now = time.monotonic()
        if self._frames_hz and now - self._framed.get(index, -1e9) >= 1 / self._frames_hz:
            self._framed[index] = now
            document["frame"] = base64.b64encode(bytes(tau_codes(tau[-1]).tolist())).decode()
        return document
