"""Settings of what a model may do at test time: learn from the text it reads, and look things up in it.

The defaults were chosen on tiny-shakespeare's validation text (characters) and on the validation part of the
documentation inside Python (word pieces); see docs/command-line.md.
"""

from typing import Annotated

from pydantic import Field

from ltc_textgen.settings import Settings


class DynamicConfig(Settings):
    """Dynamic evaluation (see `evaluation.adaptive`)."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        3e-4, description="How far a weight moves at a gradient of usual size."
    )
    decay: Annotated[float, Field(ge=0, le=1)] = Field(
        1e-3, description="Share of the way back to the trained weights that a usual weight goes after each segment."
    )
    segment: Annotated[int, Field(ge=1, le=100_000)] = Field(
        16, description="Tokens that are scored before the weights learn from them."
    )


class CacheConfig(Settings):
    """A continuous cache (see `evaluation.adaptive`)."""

    size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        2000, description="Tokens back to which the cache remembers; memory grows with it."
    )
    theta: Annotated[float, Field(ge=0, le=1000)] = Field(
        20.0, description="How much better a similar context counts than a dissimilar one; 0: all count alike."
    )
    weight: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="Share lambda of the cache in the mixture; the network has the rest."
    )
