"""`LiquidTimeConstantNetwork`: the network of `network.py` as a `transformers` model.

The same class is the network of the first LTC text scripts (one plain layer; seven arguments) and the deep language
model (residual liquid blocks, `block="liquid"`).
"""

from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from ltc_textgen.config import ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.hf.config import LiquidCache, LiquidOutput, LTCConfig, check_past
from ltc_textgen.hf.generation import Writer
from ltc_textgen.hf.sharing import Sharer
from ltc_textgen.model.heads import IGNORED, FullHead
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Bool, Float, Int, Tensor


class LiquidTimeConstantNetwork(Writer, Sharer, LiquidNetwork, PreTrainedModel, GenerationMixin):
    """A liquid time-constant network that models text.

    Args:
        input_size: Vocabulary, or an `LTCConfig` that holds all of the following.
        hidden_size: Width of the model; neurons of a plain layer.
        output_size: Vocabulary of the output layer; `input_size` if None.
        steps: Solver sub-steps per token.
        step_size: Length of a sub-step in token time (consecutive tokens are 1.0 apart).
        solver: semi_implicit, explicit, runge_kutta or exponential, in any spelling ("SemiImplicit").
        adaptive: Liquid time constants; False freezes them (a CT-RNN).
        **more: The other fields of `config.ModelConfig`: coupling, block, num_layers, dropout, ...

    Raises:
        UsageError: If a value is out of range or a key unknown; the message names it.

    Example:
        >>> import torch
        >>> network = LiquidTimeConstantNetwork(65, 32, 65, 6, 1 / 6, "SemiImplicit", True)
        >>> network(torch.zeros(1, 8, dtype=torch.long)).logits.shape
        torch.Size([1, 8, 65])
    """

    config_class = LTCConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules = ("LiquidBlock", "PlainLayer")

    def __init__(
        self,
        input_size: int | LTCConfig,
        hidden_size: int = 256,
        output_size: int | None = None,
        steps: int = 6,
        step_size: float = 1 / 6,
        solver: Solver | str = Solver.semi_implicit,
        adaptive: bool = True,
        **more: Any,
    ) -> None:
        rest: dict[str, Any] = {"hidden_size": hidden_size, "output_size": output_size, "steps": steps}
        rest |= {"step_size": step_size, "solver": solver, "adaptive": adaptive}
        if isinstance(input_size, LTCConfig):
            given = [name for name, value in rest.items() if value != ModelConfig.model_fields[name].default]
            if given or more:
                raise UsageError(
                    f"LiquidTimeConstantNetwork: {[*given, *more][0]} is given beside a config: set it there"
                )
            config = input_size
        else:
            settings = ModelConfig.parse({"input_size": input_size, **rest, **more}, "LiquidTimeConstantNetwork")
            config = LTCConfig.from_settings(settings)
        PreTrainedModel.__init__(self, config)
        self.loss_type = "ForCausalLM"  # the Trainer then divides by the labels that have a token before them
        self._build(config.settings)
        self.post_init()

    @classmethod
    def from_settings(cls, settings: ModelConfig) -> "LiquidTimeConstantNetwork":
        """The network that `settings` describes, freshly initialised."""
        return cls(LTCConfig.from_settings(settings))

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of the token ids."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another embedding in its place."""
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The matrix of the output layer; None if it is adaptive, which is no single matrix."""
        return self.head.projection if isinstance(self.head, FullHead) else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another matrix in its place."""
        self.head.projection = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As `transformers` does it: more or fewer tokens in embedding and output layer; `settings` follow.

        Raises:
            UsageError: If the output layer is adaptive, or has a vocabulary of its own.
        """
        if self.settings.head == "adaptive":
            raise UsageError("resize_token_embeddings needs head = full: the clusters of an adaptive head are fixed")
        if self.settings.vocabulary != self.settings.input_size:
            sizes = f"{self.settings.input_size} and {self.settings.vocabulary}"
            raise UsageError(
                f"resize_token_embeddings needs one vocabulary, input and output layer have {sizes} tokens"
            )
        embedding = super().resize_token_embeddings(*args, **kwargs)
        if self.config.output_size is not None:
            self.config.output_size = embedding.num_embeddings
        self.settings = self.config.settings
        return embedding

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B _"] | Bool[Tensor, "B _"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        shift_labels: Int[Tensor, "B T"] | None = None,
        state: LiquidState | None = None,
        elapsed: Float[Tensor, "..."] | float | None = None,
        past_key_values: LiquidCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Int[Tensor, " _"] = 0,
        num_items_in_batch: Int[Tensor, ""] | Float[Tensor, ""] | int | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> LiquidOutput | tuple[Any, ...]:
        """Read tokens and predict the next of each.

        Args:
            input_ids: Token ids.
            attention_mask: 0 where a token is padding. May be longer than the ids, as `generate` passes it; the last
                T columns count.
            labels: Targets as `transformers` gives them: the ids themselves, shifted here; -100 has no loss.
            shift_labels: Targets already shifted (the token after each). No logits are returned then.
            state: State before the first token.
            elapsed: As in `advance`.
            past_key_values: The same as `state`, as a cache; it is updated.
            use_cache: Whether to return `past_key_values`; yes if None, except in training.
            output_hidden_states: Whether to return the output of every layer.
            logits_to_keep: Logits of the last so many tokens only, 0 for all; or of the tokens with these numbers.
            num_items_in_batch: Divides the loss in place of the number of targets (gradient accumulation).
            return_dict: False returns a tuple.
            **unused: What `transformers` passes to attention models.

        Raises:
            UsageError: If ids, labels, state or cache do not fit the network, or attentions are asked for.
        """
        if unused.get("output_attentions"):
            raise UsageError("output_attentions: a liquid network has none")
        if unused.get("inputs_embeds") is not None:
            raise UsageError("inputs_embeds: this network reads token ids only")
        check_past(state, past_key_values)
        if past_key_values is not None:
            past_key_values.require_model(self)
        tokens = input_ids.shape[-1]
        mask = None if attention_mask is None else attention_mask[:, -tokens:].bool()
        if state is None and past_key_values is not None:
            state = past_key_values.state
        hidden, after, every = self._read(input_ids, state, elapsed, mask, keep=bool(output_hidden_states))
        loss = logits = None
        if shift_labels is not None:
            loss = self._mean_loss(hidden, shift_labels, num_items_in_batch)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.head.logits(hidden[:, kept])
            if labels is not None:
                loss = self._mean_loss(hidden[:, :-1], labels[:, 1:], num_items_in_batch)
        cache = past_key_values
        if cache is None and (use_cache or (use_cache is None and not self.training)):
            cache = LiquidCache()
            cache.require_model(self)
        if cache is not None:
            cache.update_state(after, tokens)
        output = LiquidOutput(loss, logits, after, cache, tuple(every) if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output

    def _mean_loss(self, hidden: Tensor, targets: Tensor, count: Any) -> Tensor:
        if count is None:
            count = (targets != IGNORED).sum().clamp_min(1)
        try:
            return self.head.total_loss(hidden, targets) / count
        except IndexError:
            last = self.settings.vocabulary - 1
            raise UsageError(f"labels: expected 0 to {last}, or {IGNORED}, got {_outside(targets, last)}") from None


def _outside(targets: Tensor, last: int) -> int:
    return int(targets[((targets < 0) | (targets > last)) & (targets != IGNORED)][0])
