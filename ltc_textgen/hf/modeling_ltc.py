"""Stored alongside a model's weights, so that `from_pretrained(..., trust_remote_code=True)` finds the network.

The network itself is in the package ltc-textgen. A program that imports `ltc_textgen` needs neither this file nor
`trust_remote_code`.
"""

from typing import Any

from transformers import GenerationMixin

try:
    from ltc_textgen.hf.config import LTCConfig as _Config
    from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork as _Network
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "ltc_textgen":
        raise
    raise ImportError("this model needs the package ltc-textgen: pip install ltc-textgen") from None


# transformers marks the classes that it finds here as remote code; those of the package are to stay as they are.
class LTCConfig(_Config):
    """Loads as `ltc_textgen.LTCConfig`, for `trust_remote_code=True`."""

    def __init__(self, **kwargs: Any) -> None:  # or transformers makes a dataclass of it
        super().__init__(**kwargs)


class LiquidTimeConstantNetwork(_Network, GenerationMixin):
    """Loads as `ltc_textgen.LiquidTimeConstantNetwork`, for `trust_remote_code=True`."""

    config_class = LTCConfig
