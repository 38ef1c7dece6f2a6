"""The letters of every shape in this package, declared once.

Annotations, einsum strings and comments use these letters and no others:

    B   sequences in a batch (batch rows)
    T   tokens of a sequence
    D   width of the model (features that enter a layer)
    N   neurons of a liquid layer
    O   outputs of a liquid layer (equal to N unless a wiring has motor neurons)
    V   vocabulary
    K   solver sub-steps within one token

A shape such as ``Float[Tensor, "B T N"]`` reads: floating point, B by T by N. The tests check every
annotation at run time (jaxtyping with beartype); outside the tests they cost nothing.
"""

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Shaped", "Tensor"]
