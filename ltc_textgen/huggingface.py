"""What makes the network a citizen of `transformers`: its configuration, and its state in the shape of a cache."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from ltc_textgen.config import ModelConfig
from ltc_textgen.shapes import Int, Tensor
from ltc_textgen.state import LiquidState


class LTCConfig(PreTrainedConfig):
    """`ModelConfig` as `transformers` wants it; the fields, their defaults and their ranges are those of `ModelConfig`.

    Raises:
        UsageError: If a field is out of range; the message names it.
    """

    model_type = "ltc"
    attribute_map = {
        "vocab_size": "input_size",
        "num_hidden_layers": "num_layers",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(self, **kwargs: Any) -> None:
        for theirs, ours in self.attribute_map.items():
            if theirs in kwargs:
                kwargs[ours] = kwargs.pop(theirs)
        given = {name: kwargs.pop(name) for name in ModelConfig.model_fields if name in kwargs}
        # transformers builds a configuration without arguments to learn the defaults.
        settings = ModelConfig.parse({"input_size": 1, **given}, "model")
        for name, value in settings.model_dump(mode="json").items():
            setattr(self, name, value)
        super().__init__(**kwargs)

    @property
    def settings(self) -> ModelConfig:
        """The validated settings."""
        return ModelConfig.parse({name: getattr(self, name) for name in ModelConfig.model_fields}, "model")

    @classmethod
    def from_settings(cls, settings: ModelConfig, **kwargs: Any) -> "LTCConfig":
        """The configuration that holds `settings`."""
        return cls(**settings.model_dump(mode="json"), **kwargs)


class LiquidCache(Cache):
    """A `LiquidState` where `generate` expects a cache: of constant size, carried and reordered as a whole.

    transformers' own cache for recurrent layers drops the state of a model without convolution (seen in 5.23), hence
    this one. `layers` is empty, so nothing of the base class's bookkeeping by layer applies.
    """

    # True would turn the attention mask into a dictionary of masks by layer type.
    is_compileable = False

    def __init__(self, state: LiquidState | None = None, seen: int = 0) -> None:
        super().__init__(layers=[])
        self.state, self.seen = state, seen

    def update_state(self, state: LiquidState, tokens: int) -> None:
        """Put the state after `tokens` more tokens in the place of the one before."""
        self.state, self.seen = state, self.seen + tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far."""
        return self.seen

    def get_max_length(self, layer_idx: int = 0) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of a mask over all tokens."""
        return self.seen + query_length, 0

    def reorder_cache(self, beam_idx: Int[Tensor, " B"]) -> None:
        """Follow the beams."""
        if self.state is not None:
            self.state = self.state.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Fork every sequence `repeats` times."""
        if self.state is not None:
            self.state = self.state.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Int[Tensor, " B"]) -> None:
        """Keep the named sequences."""
        self.reorder_cache(indices)

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen = None, 0
