"""What makes the network a citizen of `transformers`: configuration, state in the shape of a cache, and output."""

import dataclasses
import weakref
from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ltc_textgen.config import ModelConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.model.state import LiquidState
from ltc_textgen.settings import did_you_mean, with_current_names
from ltc_textgen.shapes import Int, Tensor

FROM_TRANSFORMERS = frozenset(
    {"model_type", "auto_map", "name_or_path", "num_labels", "torch_dtype", "output_attentions", "use_cache"}
    | {"attn_implementation", "experts_implementation", "quantization_config", "custom_pipelines"}
    | {"tokenizer_class", "task_specific_params", "finetuning_task", "trust_remote_code"}
)
"""Keys of a configuration that transformers reads or writes, besides its dataclass fields and those of generation."""


class LTCConfig(PreTrainedConfig):
    """`ModelConfig` as a `transformers` configuration; fields, defaults and ranges are those of `ModelConfig`.

    Raises:
        UsageError: If a field is out of range, or a key neither one of ours nor of transformers; the message names it.
    """

    model_type = "ltc"
    keys_to_ignore_at_inference = ["state", "past_key_values", "last_hidden_state"]
    attribute_map = {
        "vocab_size": "input_size",
        "num_hidden_layers": "num_layers",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(self, **kwargs: Any) -> None:
        kwargs = with_current_names(kwargs, ModelConfig)
        self.reject_unknown(kwargs, "model")
        for theirs, ours in self.attribute_map.items():
            if theirs in kwargs:
                kwargs[ours] = kwargs.pop(theirs)
        given = {name: kwargs.pop(name) for name in ModelConfig.model_fields if name in kwargs}
        # transformers builds a configuration without arguments to learn the defaults.
        settings = ModelConfig.parse({"input_size": 1, **given}, "model")
        for name, value in settings.model_dump(mode="json").items():
            setattr(self, name, value)
        super().__init__(**kwargs)

    @classmethod
    def reject_unknown(cls, keys: Iterable[str], where: str) -> None:
        """Check that every key of a configuration is known.

        Args:
            keys: As in a config.json.
            where: What to name in the error.

        Raises:
            UsageError: If a key is neither one of ours nor of transformers.
        """
        known = FROM_TRANSFORMERS | {field.name for field in dataclasses.fields(PreTrainedConfig)}
        known |= vars(GenerationConfig()).keys() | cls.attribute_map.keys()
        for key in keys:
            if not (key in known or key in ModelConfig.model_fields or key.startswith("_")):
                raise UsageError(f"{where}: unknown key '{key}'{did_you_mean(key, list(ModelConfig.model_fields))}")

    @property
    def settings(self) -> ModelConfig:
        """The settings as a validated `ModelConfig`."""
        return ModelConfig.parse({name: getattr(self, name) for name in ModelConfig.model_fields}, "model")

    @classmethod
    def from_settings(cls, settings: ModelConfig, **kwargs: Any) -> "LTCConfig":
        """The configuration that holds `settings`."""
        return cls(**settings.model_dump(mode="json"), **kwargs)


class LiquidCache(Cache):
    """A `LiquidState` where `generate` expects a cache: of constant size, carried and reordered as a whole.

    transformers' own cache for recurrent layers drops the state of a model without convolution (seen in 5.23), hence
    this one. `layers` is empty, so nothing of the base class's bookkeeping by layer applies.

    Args:
        state: What was read; nothing if None.
        seen: How many tokens that were.
    """

    # True would turn the attention mask into a dictionary of masks by layer type.
    is_compileable = False

    def __init__(self, state: LiquidState | None = None, seen: int = 0) -> None:
        super().__init__(layers=[])
        self.state, self.seen = state, seen
        self._model: weakref.ref | None = None

    def __bool__(self) -> bool:
        """True, although it has no layers: `if cache` asks whether there is one."""
        return True

    def __getstate__(self) -> dict[str, Any]:
        """As `pickle` keeps it: in another process no model has filled it."""
        return {**self.__dict__, "_model": None}

    def require_model(self, model: Any) -> None:
        """Bind the cache to `model`.

        Raises:
            UsageError: If another one has filled the cache: its state says nothing to this one.
        """
        if self.state is not None and self._model is not None and self._model() is not model:
            raise UsageError("past_key_values: another model has filled this cache")
        self._model = weakref.ref(model)

    def update_state(self, state: LiquidState, tokens: int) -> None:
        """Put the state after `tokens` more tokens in the place of the one before."""
        self.state, self.seen = state, self.seen + tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far."""
        return self.seen

    def get_max_length(self, layer_idx: int = 0) -> int:
        """None: a state has no maximum length."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of a mask over all tokens."""
        return self.seen + query_length, 0

    def reorder_cache(self, beam_idx: Int[Tensor, " B"]) -> None:
        """Select the rows of the beams that beam search keeps."""
        if self.state is not None:
            self.state = self.state.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Fork every sequence `repeats` times."""
        if self.state is not None:
            self.state = self.state.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Int[Tensor, " B"]) -> None:
        """Keep the named sequences."""
        self.reorder_cache(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Reject cropping: the state after a text does not determine that of some tokens earlier.

        Raises:
            UsageError: If a token would have to be removed.
        """
        if tokens_to_remove:
            raise UsageError("past_key_values: a liquid state cannot be rolled back; keep a copy from before")

    def reset(self) -> None:
        """Reset to the state before the first token."""
        self.state, self.seen = None, 0


def check_past(state: Any, cache: Any) -> None:
    """Reject arguments that cannot be the past of the given tokens.

    Raises:
        UsageError: If the cache is none of ours, or there is a state too.
    """
    if cache is not None and not isinstance(cache, LiquidCache):
        raise UsageError(f"past_key_values: expected a LiquidCache, got {type(cache).__name__}")
    if state is not None and cache is not None:
        raise UsageError("state and past_key_values exclude each other: both say what was read before")


@dataclasses.dataclass
class LiquidOutput(ModelOutput):
    """What a forward pass returns.

    Args:
        loss: Mean loss in nats per target, if targets were given.
        logits: Unnormalised log-probabilities of the next token, (B, T, V), which an adaptive head normalises; None if
            `skip_logits` was given with targets.
        state: State after the last token.
        past_key_values: The same state as a cache, for `generate`.
        hidden_states: If asked for, the embedding and the output of every layer, (B, T, D); the last is after the final
            norm, which is what the output layer reads.
        last_hidden_state: The last of them, whether asked for or not.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: LiquidState | None = None
    past_key_values: LiquidCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None
