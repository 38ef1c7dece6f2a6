"""`generate` of transformers with a state of constant size, from texts that were read, and with errors that say why."""

from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from ltc_textgen.errors import LogitsError, UsageError
from ltc_textgen.huggingface import LiquidCache, LiquidOutput
from ltc_textgen.shapes import Tensor
from ltc_textgen.state import LiquidState
from ltc_textgen.states import TextState


class FiniteLogits(LogitsProcessor):
    """Refuses logits that no token can be drawn from; transformers would write token 0 for ever."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken = ~scores.amax(dim=-1).isfinite()
        if bool(broken.any()):
            row = int(broken.nonzero()[0, 0])
            raise LogitsError(f"the model's logits of sequence {row} are NaN or infinite: its weights are broken")
        return scores


class Writer:
    """Goes before `transformers.GenerationMixin`, which a model must name among its own bases."""

    def generate(
        self, inputs: Tensor | None = None, *args: Any, state: TextState | LiquidState | None = None, **kwargs: Any
    ) -> Any:
        """As in `transformers`, and from a state.

        Args:
            inputs: Token ids (B, T), padded on the left. None with a `TextState`: its text goes on.
            *args: As in `transformers`.
            state: A text that was read, for one or each sequence. Its last token is read again and is not part of the
                result.
            **kwargs: As in `transformers`.

        Raises:
            UsageError: If padding is on the right, or the state is of another model or batch.
            LogitsError: If the model's weights are broken.
        """
        given = kwargs.pop("logits_processor", None) or []
        kwargs["logits_processor"] = LogitsProcessorList([FiniteLogits(), *given])
        mask = kwargs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise UsageError(
                "attention_mask: padding is on the right, where the text goes on; tokenizer.padding_side = 'left'"
            )
        if not isinstance(state, TextState):
            more = {} if state is None else {"state": state}
            return super().generate(inputs, *args, **more, **kwargs)  # type: ignore[misc]
        state.require_model(self)  # type: ignore[arg-type]
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        start = state.last[:, None]
        if ids is not None:
            if ids.shape[0] % state.batch_size:
                raise UsageError(f"state: expected {ids.shape[0]} texts or one, got {state.batch_size}")
            start = start.repeat_interleave(ids.shape[0] // state.batch_size, dim=0)
            start = torch.cat([start.to(ids.device), ids], dim=1)
        if mask is not None:
            kwargs["attention_mask"] = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        else:  # or transformers takes a last token that is also the padding for padding
            kwargs["attention_mask"] = torch.ones_like(start)
        if kwargs.get("max_length") is not None:
            kwargs["max_length"] += 1
        result = super().generate(start, *args, state=state.liquid, **kwargs)  # type: ignore[misc]
        if isinstance(result, Tensor):
            return result[:, 1:]
        result.sequences = result.sequences[:, 1:]
        return result

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        mode: Any,
        batch_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        given = model_kwargs.get("past_key_values")
        if given is not None:
            if not isinstance(given, LiquidCache):
                raise UsageError(f"past_key_values: expected a LiquidCache, got {type(given).__name__}")
            model_kwargs.pop("state", None)
            return
        cache = LiquidCache(model_kwargs.pop("state", None))
        if cache.state is not None:  # one state may start many sequences
            rows = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            if rows % cache.state.batch_size:
                raise UsageError(f"state: expected {batch_size} sequences or one, got {cache.state.batch_size}")
            cache.batch_repeat_interleave(rows // cache.state.batch_size)
        if generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = cache
        elif cache.state is not None:  # every token reads the whole text again, from the same state
            model_kwargs["state"] = cache.state

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
        update = super()._update_model_kwargs_for_generation  # type: ignore[misc]
        return update(outputs, model_kwargs, *args, **kwargs)
