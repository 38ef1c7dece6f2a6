"""The network of `modeling` with other heads: hidden vectors alone, a class for each text, a class for each token.

    AutoModelForSequenceClassification.from_pretrained("runs/book", num_labels=2)

starts from the weights of a language model and a fresh `score` layer.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from ltc_textgen.hf.config import LiquidOutput, LTCConfig, check_past
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork, reject_unknown_arguments, tokens_of
from ltc_textgen.layers.base import Elapsed
from ltc_textgen.shapes import Bool, Float, Int, Shaped, Tensor


class LTCModel(LiquidTimeConstantNetwork):
    """The network without an output layer: `AutoModel`.

    Args:
        config: Of the network.
    """

    _tied_weights_keys = {}  # of the output layer that is not there
    _keys_to_ignore_on_load_unexpected = (r"^lm_head\.",)

    def __init__(self, config: LTCConfig) -> None:
        super().__init__(config)
        del self.lm_head

    @classmethod
    def can_generate(cls) -> bool:
        """False: there is no output layer."""
        return False

    def get_output_embeddings(self) -> None:
        """None: there is no output layer."""
        return

    def forward(  # type: ignore[override]
        self, input_ids: Int[Tensor, "B T"] | None = None, **arguments: Any
    ) -> Any:
        """Read tokens. Arguments as in `LiquidTimeConstantNetwork`, without labels and logits.

        Returns:
            A `LiquidOutput` with `last_hidden_state`, `state`, and `hidden_states` if asked for.

        Raises:
            UsageError: As there.
        """
        hidden, output = self._hidden(input_ids, **arguments)
        output.last_hidden_state = hidden
        return output.to_tuple() if arguments.get("return_dict") is False else output

    def _hidden(
        self,
        input_ids: Tensor | None,
        attention_mask: Shaped[Tensor, "B _"] | None = None,
        elapsed: Elapsed = None,
        inputs_embeds: Float[Tensor, "_ _ _"] | None = None,
        output_hidden_states: bool | None = None,
        state: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> tuple[Float[Tensor, "B T D"], LiquidOutput]:
        reject_unknown_arguments(others)
        check_past(state, past_key_values)
        tokens = tokens_of(input_ids, inputs_embeds)
        before = state if past_key_values is None else past_key_values.state
        keep = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        mask = None if attention_mask is None else attention_mask.bool()
        hidden, after, every = self._read(tokens, before, elapsed, mask, keep, inputs_embeds)
        return hidden, LiquidOutput(state=after, hidden_states=(*every, hidden) if keep else None)


class LTCForSequenceClassification(LTCModel):
    """A class, or numbers, for each text, from the hidden vector at its last token.

    Args:
        config: Of the network; `num_labels` and `problem_type` as in transformers.
    """

    def __init__(self, config: LTCConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(self.settings.hidden_size, config.num_labels)
        self.loss_type = "ForSequenceClassification"

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Shaped[Tensor, "B T"] | None = None,
        labels: Shaped[Tensor, "B *labels"] | None = None,
        **arguments: Any,
    ) -> Any:
        """Read texts, padded on either side, and classify them.

        Args:
            input_ids: Token ids.
            attention_mask: 0 where a token is padding.
            labels: Classes (B,), numbers, or zeros and ones (B, labels), by `config.problem_type`.
            **arguments: As in `LTCModel`.
        """
        hidden, output = self._hidden(input_ids, attention_mask, **arguments)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), _last(hidden, attention_mask)])
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        found = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return found.to_tuple() if arguments.get("return_dict") is False else found


class LTCForTokenClassification(LTCModel):
    """A class for each token, from what was read up to it: the network sees nothing of what follows.

    Args:
        config: Of the network; `num_labels` as in transformers.
    """

    def __init__(self, config: LTCConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(self.settings.hidden_size, config.num_labels)
        self.loss_type = "ForTokenClassification"

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Shaped[Tensor, "B T"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        **arguments: Any,
    ) -> Any:
        """Read texts and classify their tokens.

        Args:
            input_ids: Token ids.
            attention_mask: 0 where a token is padding.
            labels: Classes; -100 has no loss.
            **arguments: As in `LTCModel`.
        """
        hidden, output = self._hidden(input_ids, attention_mask, **arguments)
        logits = self.score(hidden)
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, config=self.config)
        found = TokenClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return found.to_tuple() if arguments.get("return_dict") is False else found


def _last(
    hidden: Float[Tensor, "B T D"], mask: Shaped[Tensor, "B T"] | Bool[Tensor, "B T"] | None
) -> Int[Tensor, " B"]:
    """Position of the last token of each text that is no padding."""
    batch, tokens = hidden.shape[:2]
    if mask is None:
        return torch.full((batch,), tokens - 1, device=hidden.device)
    places = torch.arange(tokens, device=hidden.device)
    return torch.where(mask.bool(), places, 0).amax(dim=1)
