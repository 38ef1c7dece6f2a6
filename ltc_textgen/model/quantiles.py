"""Quantiles of the time constants of a layer, as `ltc inspect` and the model card show them."""

from collections.abc import Sequence

import torch

from ltc_textgen.shapes import Tensor

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def quantiles(values: Tensor, fractions: Sequence[float] = QUANTILES) -> list[float]:
    """Nearest-rank quantiles of all elements of a tensor, of any number (torch.quantile is limited to 2**24).

    >>> quantiles(torch.arange(11.0))
    [0.0, 1.0, 5.0, 9.0, 10.0]
    """
    ordered = values.float().cpu().flatten().sort().values
    index = (torch.tensor(fractions) * (len(ordered) - 1)).round().long()
    return [float(value) for value in ordered[index].tolist()]
