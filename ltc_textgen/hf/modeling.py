"""`LiquidTimeConstantNetwork`: the network of `model.network` as a transformers model.

The same class is the network of the first LTC text scripts (one plain layer; seven arguments) and the deep language
model (residual liquid blocks, `block="liquid"`).
"""

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList

from ltc_textgen.config import ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.hf.config import LiquidCache, LiquidOutput, LTCConfig, check_past
from ltc_textgen.hf.generation import StopStrings, initial_cache, prepare_inputs
from ltc_textgen.hf.sharing import check_weights, complete_upload, explain_missing_weights, loading_options
from ltc_textgen.layers.base import Elapsed
from ltc_textgen.model.heads import IGNORED, FullHead
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.model.text_state import TextState
from ltc_textgen.settings import did_you_mean
from ltc_textgen.shapes import Bool, Float, Int, Tensor


class LiquidTimeConstantNetwork(LiquidNetwork, PreTrainedModel, GenerationMixin):
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

    run_directory: Path | None = None
    """The directory that `load_run` read the model from."""

    if TYPE_CHECKING:  # transformers is not typed; nn.Module would make every attribute of it a tensor or a module

        def __getattr__(self, name: str) -> Any: ...

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
                    f"LiquidTimeConstantNetwork: {[*given, *more][0]} is given together with a config: set it there"
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

    @classmethod
    def sharing(cls, network: LiquidNetwork) -> "LiquidTimeConstantNetwork":
        """The transformers model of the same modules: what changes in one changes in the other."""
        with torch.device("meta"):
            model = cls.from_settings(network.settings)
        for name, module in network.named_children():
            setattr(model, name, module)
        model.tokenizer = network.tokenizer
        return model.train(network.training)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of the token ids."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another embedding in its place."""
        self.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The matrix of the output layer; None if it is adaptive, which is no single matrix."""
        return self.lm_head.projection if isinstance(self.lm_head, FullHead) else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another matrix in its place."""
        self.lm_head.projection = new_embeddings

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
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Int[Tensor, "B _"] | Bool[Tensor, "B _"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        state: LiquidState | None = None,
        elapsed: Elapsed = None,
        past_key_values: LiquidCache | None = None,
        inputs_embeds: Float[Tensor, "_ _ _"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Int[Tensor, " _"] = 0,
        num_items_in_batch: Int[Tensor, ""] | Float[Tensor, ""] | int | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> LiquidOutput | tuple[Any, ...]:
        """Read tokens and predict the next of each.

        Args:
            input_ids: Token ids.
            attention_mask: 0 where a token is padding. May be longer than the ids, as `generate` passes it; the last
                T entries count.
            labels: Targets as in transformers: the ids themselves, shifted here; -100 has no loss.
            state: State before the first token.
            elapsed: As in `advance`.
            past_key_values: The same as `state`, as a cache; it is updated.
            inputs_embeds: Embedded tokens in place of `input_ids`, for soft prompts and attribution.
            use_cache: Whether to return `past_key_values`; if None, yes except in training.
            output_hidden_states: Whether to return the hidden states.
            logits_to_keep: Logits of the last so many tokens only, 0 for all; or of the tokens at these positions.
            num_items_in_batch: Divides the loss in place of the number of targets (gradient accumulation).
            return_dict: False returns a tuple.
            **others: `shift_labels`, targets that are shifted already (the token after each); `skip_logits=True`
                returns no logits with a loss, which saves the memory of a large vocabulary; and arguments for
                attention that transformers passes to every model, which have no effect.

        Raises:
            UsageError: If ids, labels, state or cache do not fit the network, attentions are asked for, or an argument
                is unknown.
        """
        shift_labels, skip_logits = others.pop("shift_labels", None), others.pop("skip_logits", False)
        reject_unknown_arguments(others)
        tokens = tokens_of(input_ids, inputs_embeds)
        check_past(state, past_key_values)
        if past_key_values is not None:
            past_key_values.require_model(self)
            state = past_key_values.state
        mask = None if attention_mask is None else attention_mask[:, -tokens.shape[1] :].bool()
        keep = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        hidden, after, every = self._read(tokens, state, elapsed, mask, keep, inputs_embeds)
        loss = self._mean_loss(hidden, labels, shift_labels, num_items_in_batch)
        logits = None
        if loss is None or not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head.logits(hidden[:, kept])
        cache = self._cache(past_key_values, use_cache, after, tokens.shape[1])
        output = LiquidOutput(loss, logits, after, cache, (*every, hidden) if keep else None, hidden)
        return output.to_tuple() if return_dict is False else output

    def _cache(
        self, given: LiquidCache | None, use_cache: bool | None, after: LiquidState, tokens: int
    ) -> LiquidCache | None:
        cache = given
        if cache is None and (use_cache or (use_cache is None and not self.training)):
            cache = LiquidCache()
            cache.require_model(self)
        if cache is not None:
            cache.update_state(after, tokens)
        return cache

    def _mean_loss(self, hidden: Tensor, labels: Tensor | None, shifted: Tensor | None, count: Any) -> Tensor | None:
        if shifted is None:
            if labels is None:
                return None
            hidden, shifted = hidden[:, :-1], labels[:, 1:]
        if count is None:
            count = (shifted != IGNORED).sum().clamp_min(1)
        try:
            return self.lm_head.total_loss(hidden, shifted) / count
        except IndexError:
            last = self.settings.vocabulary - 1
            raise UsageError(f"labels: expected 0 to {last}, or {IGNORED}, got {_outside(shifted, last)}") from None

    def generate(
        self, inputs: Tensor | None = None, *args: Any, state: TextState | LiquidState | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers, and from a state.

        Args:
            inputs: Token ids (B, T), padded on the left. None with a `TextState`: its text continues.
            *args: As in transformers.
            state: A text that was read, for one or each sequence. Its last token is read again and is not part of the
                result.
            **kwargs: As in transformers.

        Raises:
            UsageError: If padding is on the right, or the state is of another model or batch.
            LogitsError: If the model's weights are broken.
        """
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        result = super().generate(prepare_inputs(self, ids, args, state, kwargs), *args, **kwargs)
        if not isinstance(state, TextState):
            return result
        if isinstance(result, Tensor):
            return result[:, 1:]
        result.sequences = result.sequences[:, 1:]
        return result

    def _get_stopping_criteria(
        self, generation_config: Any, stopping_criteria: StoppingCriteriaList | None, tokenizer: Any = None, **more: Any
    ) -> StoppingCriteriaList:
        texts, generation_config.stop_strings = generation_config.stop_strings, None
        try:
            found = super()._get_stopping_criteria(generation_config, stopping_criteria, tokenizer=tokenizer, **more)
        finally:
            generation_config.stop_strings = texts
        if texts is not None:
            found.append(StopStrings(texts, tokenizer))
        return found

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        mode: Any,
        batch_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        initial_cache(self, generation_config, model_kwargs, batch_size)

    def _reorder_cache(self, cache: LiquidCache | LiquidState, beam_idx: Tensor) -> LiquidCache | LiquidState:
        if isinstance(cache, LiquidState):  # where every token reads the whole text again
            return cache.select(beam_idx)
        cache.reorder_cache(beam_idx)
        return cache

    def _update_model_kwargs_for_generation(
        self, outputs: LiquidOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        # transformers takes an output named "state" for a cache of its own; ours travels in past_key_values.
        outputs = LiquidOutput(logits=outputs.logits, past_key_values=outputs.past_key_values)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from safetensors files only: loading a pickle runs whatever its author put into it.

        Raises:
            ArtifactError: If there are pickled weights and no others, or the checksum in the file is not that of its
                tensors.
            UsageError: If pickles are asked for with `use_safetensors=False`.
        """
        options = loading_options(kwargs)
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        except OSError:
            explain_missing_weights(Path(str(pretrained_model_name_or_path)))
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._weight_conversions = None  # or transformers would save the names of earlier versions again
        if pretrained_model_name_or_path is not None:
            check_weights(pretrained_model_name_or_path, kwargs)
        return loaded

    def save_for_hub(self, directory: Path | str, repository: str | None = None, **kwargs: Any) -> None:
        """Write what `push_to_hub` would upload: `save_pretrained`, model card, tokenizer and code.

        Args:
            directory: Where to; it is made. A README.md there keeps its header and what is not ours.
            repository: Id under which the card says the model can be loaded; the directory's name if None.
            **kwargs: As in `save_pretrained`.

        Raises:
            LogitsError: If the weights are broken.
            LTCError: If a file cannot be written.
        """
        self.save_pretrained(directory, **kwargs)
        complete_upload(self, Path(directory), repository or Path(directory).resolve().name)

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # The last step of both ways to push; transformers has put its card into the folder just before.
        complete_upload(self, Path(working_dir), repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


IGNORED_ARGUMENTS = frozenset(
    {
        "cache_position",
        "position_ids",
        "token_type_ids",
        "output_attentions",
        "is_first_iteration",
        "next_sequence_length",
        "tokenizer",
    }
)
"""Arguments that transformers passes to every model and that mean nothing to a recurrent one."""


def reject_unknown_arguments(others: dict[str, Any]) -> None:
    """Check the keyword arguments of `forward` besides its own.

    Raises:
        UsageError: If one is unknown, or asks for attentions.
    """
    if others.get("output_attentions"):
        raise UsageError("output_attentions: a liquid network has none")
    unknown = sorted(others.keys() - IGNORED_ARGUMENTS)
    if unknown:
        known = [*signature(LiquidTimeConstantNetwork.forward).parameters, "shift_labels", "skip_logits"]
        raise UsageError(f"forward: unknown argument '{unknown[0]}'{did_you_mean(unknown[0], known)}")


def tokens_of(input_ids: Tensor | None, embeds: Tensor | None) -> Tensor:
    """The token ids, or zeros in their place where embeddings are given.

    Raises:
        UsageError: If both or neither are given.
    """
    if (input_ids is None) == (embeds is None):
        given = "none" if embeds is None else "both"
        raise UsageError(f"forward: expected input_ids or inputs_embeds, got {given}")
    if input_ids is not None:
        return input_ids
    assert embeds is not None
    return torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device)


def _outside(targets: Tensor, last: int) -> int:
    return int(targets[((targets < 0) | (targets > last)) & (targets != IGNORED)][0])
