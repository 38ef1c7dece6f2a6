"""`LiquidTimeConstantNetwork`: embedding -> liquid layers -> output layer, as a `transformers` model.

    ids (B, T) --embedding--> (B, T, D) --num_layers layers--> hidden (B, T, D) --head--> logits (B, T, V)

The same class is the network of the first LTC text scripts (one plain layer; seven arguments) and the deep language
model (residual liquid blocks, `block="liquid"`).
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel

from ltc_textgen.blocks import LayerState, LockedDropout, build_layer
from ltc_textgen.cells.base import broadcast_elapsed
from ltc_textgen.config import ModelConfig, Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.head import IGNORED, FullHead, build_head
from ltc_textgen.huggingface import LiquidCache, LiquidOutput, LTCConfig
from ltc_textgen.shapes import Bool, Float, Int, Tensor
from ltc_textgen.sharing import Sharer
from ltc_textgen.state import LiquidState
from ltc_textgen.states import Reader
from ltc_textgen.writer import Writer

FIRST_STD = 0.02
"""Spread of the embedding at the start when the output layer shares it, so that the first logits are small."""


class LiquidTimeConstantNetwork(Writer, Reader, Sharer, PreTrainedModel, GenerationMixin):
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
    _tied_weights_keys = {"head.projection.weight": "embedding.weight"}

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
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # the Trainer then divides by the labels that have a token before them
        settings = config.settings
        self.settings = settings
        self.embedding = nn.Embedding(settings.input_size, settings.hidden_size)
        self.dropout = LockedDropout(settings.embedding_dropout)
        self.layers = nn.ModuleList(build_layer(settings) for _ in range(settings.num_layers))
        deep = settings.block == "liquid"
        self.norm = nn.RMSNorm(settings.hidden_size) if deep else nn.Identity()
        self.head = build_head(settings)
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def from_settings(cls, settings: ModelConfig) -> "LiquidTimeConstantNetwork":
        """The network that `settings` describes, freshly initialised."""
        return cls(LTCConfig.from_settings(settings))

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
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

    def initial_state(self, batch_size: int) -> LiquidState:
        """The state before the first token: rest."""
        return _join([layer.initial_state(batch_size) for layer in self.layers])  # type: ignore[operator]

    def advance(
        self,
        input_ids: Int[Tensor, "B T"],
        state: LiquidState | None = None,
        elapsed: Float[Tensor, "..."] | float | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LiquidState]:
        """Read tokens: hidden vectors for the head, and the state after the last token.

        Reading T tokens at once, in chunks or one by one gives the same numbers.

        Args:
            input_ids: Token ids.
            state: State before the first token; rest if None.
            elapsed: Time from each token to the next, in token time; (), (B,), (B, 1) or (B, T); 1 if None.
            mask: False where a token is padding, anywhere in the sequence. Padding moves no state.

        Raises:
            UsageError: If an id lies outside the vocabulary, or a shape does not fit.
        """
        hidden, after, _ = self._read(input_ids, state, elapsed, mask, keep=False)
        return hidden, after

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
        logits_to_keep: int = 0,
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
            logits_to_keep: Logits of the last so many tokens only; 0 for all.
            num_items_in_batch: Divides the loss in place of the number of targets (gradient accumulation).
            return_dict: False returns a tuple.
            **unused: What `transformers` passes to attention models.
        """
        tokens = input_ids.shape[1]
        mask = None if attention_mask is None else attention_mask[:, -tokens:].bool()
        if state is None and past_key_values is not None:
            state = past_key_values.state
        hidden, after, every = self._read(input_ids, state, elapsed, mask, keep=bool(output_hidden_states))
        loss = logits = None
        if shift_labels is not None:
            loss = self._mean_loss(hidden, shift_labels, num_items_in_batch)
        else:
            logits = self.head.logits(hidden[:, -logits_to_keep:])
            if labels is not None:
                loss = self._mean_loss(hidden[:, :-1], labels[:, 1:], num_items_in_batch)
        cache = past_key_values
        if cache is not None:
            cache.update_state(after, tokens)
        elif use_cache or (use_cache is None and not self.training):
            cache = LiquidCache(after, tokens)
        output = LiquidOutput(loss, logits, after, cache, tuple(every) if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output

    def time_constants(
        self,
        input_ids: Int[Tensor, "B T"],
        state: LiquidState | None = None,
        elapsed: Float[Tensor, "..."] | float | None = None,
    ) -> list[Float[Tensor, "B T _"]]:
        """Time constant of every neuron at every token, in token time, one tensor per layer.

        tau_sys = C / G, and in a closed form (cfc) the time in which its gate's argument moves by one. Arguments as in
        `advance`; there is no dropout.
        """
        batch, tokens = self._check(input_ids, state, None)
        time = broadcast_elapsed(elapsed, batch, tokens, self.embedding.weight)
        hidden, constants = self._embed(input_ids), []
        before = _split(self.initial_state(batch) if state is None else state)
        for layer, layer_state in zip(self.layers, before, strict=True):
            hidden, tau = layer.observe(hidden, layer_state, time)  # type: ignore[operator]
            constants.append(tau)
        return constants

    def _read(
        self, input_ids: Tensor, state: LiquidState | None, elapsed: Any, mask: Tensor | None, keep: bool
    ) -> tuple[Tensor, LiquidState, list[Tensor]]:
        batch, tokens = self._check(input_ids, state, mask)
        time = broadcast_elapsed(elapsed, batch, tokens, self.embedding.weight)
        lengths = order = None
        if mask is not None and not bool(mask.all()):
            # Padding goes to the right, in every sequence, so that a layer needs to know only the lengths.
            order = torch.argsort((~mask).int(), dim=1, stable=True)
            input_ids, time, lengths = input_ids.gather(1, order), time.gather(1, order), mask.sum(1)
            mask = torch.arange(tokens, device=mask.device) < lengths[:, None]
        else:
            mask = None
        hidden = self.dropout(self._embed(input_ids))
        before = _split(self.initial_state(batch) if state is None else state)
        after, every = [], [hidden]
        for layer, layer_state in zip(self.layers, before, strict=True):
            hidden, layer_after = self._call(layer, hidden, layer_state, time, mask, lengths)
            after.append(layer_after)
            every += [hidden] if keep else []
        hidden = self.norm(hidden)
        if order is not None:
            hidden, *every = (
                torch.empty_like(h).scatter(1, order[:, :, None].expand_as(h), h) for h in [hidden, *every]
            )
        return hidden, _join(after), every

    def _call(self, layer: nn.Module, *args: Any) -> tuple[Tensor, LayerState]:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

    def _mean_loss(self, hidden: Tensor, targets: Tensor, count: Any) -> Tensor:
        if count is None:
            count = (targets != IGNORED).sum().clamp_min(1)
        return self.head.total_loss(hidden, targets) / count

    def _embed(self, input_ids: Tensor) -> Tensor:
        if not input_ids.is_cpu:  # where a lookup outside the table is no exception
            self._refuse_unknown_ids(input_ids)
        try:
            return self.embedding(input_ids)
        except IndexError:
            self._refuse_unknown_ids(input_ids)
            raise

    def _refuse_unknown_ids(self, input_ids: Tensor) -> None:
        low, high = (int(bound) for bound in torch.aminmax(input_ids))
        if low < 0 or high >= self.settings.input_size:
            raise UsageError(f"input_ids: expected 0 to {self.settings.input_size - 1}, got {low if low < 0 else high}")

    def _check(self, input_ids: Tensor, state: LiquidState | None, mask: Tensor | None) -> tuple[int, int]:
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise UsageError(f"input_ids: expected (B, T) with B, T >= 1, got {tuple(input_ids.shape)}")
        batch, tokens = input_ids.shape
        if mask is not None and (mask.shape != input_ids.shape or mask.dtype != torch.bool):
            expected = f"expected torch.bool of {(batch, tokens)}"
            raise UsageError(f"mask: {expected}, got {mask.dtype} of {tuple(mask.shape)}")
        if state is not None:
            columns = self.settings.block == "liquid" and (self.settings.conv_width - 1, self.settings.hidden_size)
            state.require(len(self.layers), (batch, self.settings.neurons), (batch, *columns) if columns else None)
        return batch, tokens

    def _init_weights(self, module: nn.Module) -> None:
        """Called by `transformers` for modules whose weights are not in a file."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=FIRST_STD if self.settings.tie_embeddings else 1.0)
        elif isinstance(module, nn.Module) and callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _split(state: LiquidState) -> list[LayerState]:
    columns = state.columns or (None,) * len(state.neurons)
    return list(zip(state.neurons, columns, strict=True))


def _join(states: list[LayerState]) -> LiquidState:
    neurons, columns = zip(*states, strict=True)
    return LiquidState(tuple(neurons), tuple(c for c in columns if c is not None))
