"""`generate` of transformers with a state of constant size, from texts that were read, and with errors that say why.

What `generate` of transformers asks after every token: can a token be drawn, and has a text reached its end?
"""

from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ltc_textgen.errors import LogitsError, UsageError
from ltc_textgen.hf.config import LiquidCache, LiquidOutput, check_past
from ltc_textgen.model.state import LiquidState
from ltc_textgen.model.text_state import TextState
from ltc_textgen.shapes import Bool, Int, Tensor

MARGIN = 8
"""Tokens beside those of a stop string that are decoded with it: the first may be a part of a character."""


class FiniteLogits(LogitsProcessor):
    """Refuses logits that no token can be drawn from; transformers would write token 0 for ever."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.amax(dim=-1)
        broken = ~best.isfinite()
        if not bool(broken.any()):
            return scores
        row = int(broken.nonzero()[0, 0])
        if float(best[row]) == float("-inf"):
            raise LogitsError(
                f"sequence {row}: every token is forbidden; loosen the constraints on what may be written"
            )
        raise LogitsError(
            f"the model's logits of sequence {row} are NaN or infinite: its weights are broken, or the state before"
        )


class StopStrings(StoppingCriteria):
    """Ends a sequence with the token that completes one of some texts.

    That of transformers tries tokens behind the letters "abcdef", and fails where a vocabulary of characters lacks one.

    Args:
        texts: Stop strings, none of them empty.
        tokenizer: Of this package or of transformers.

    Raises:
        UsageError: If there is no tokenizer, or an empty text.
    """

    def __init__(self, texts: str | list[str], tokenizer: Any) -> None:
        self.texts = [texts] if isinstance(texts, str) else list(texts)
        if tokenizer is None:
            raise UsageError("stop_strings: give generate the tokenizer too")
        if not self.texts or not all(self.texts):
            raise UsageError(f"stop_strings: expected texts that are not empty, got {self.texts}")
        self.tokenizer = tokenizer
        # A token writes one byte of UTF-8 at least, but for special ones.
        self.tail = MARGIN + max(len(text.encode()) for text in self.texts)

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Any, **kwargs: Any) -> Bool[Tensor, " B"]:
        ended = [self._ends(row) for row in input_ids[:, -self.tail :].tolist()]
        return torch.tensor(ended, device=input_ids.device)

    def _ends(self, ids: list[int]) -> bool:
        before, now = (self.tokenizer.decode(part) for part in (ids[:-1], ids))
        return any(_occurrences(text, now) > _occurrences(text, before) for text in self.texts)


def _occurrences(text: str, within: str) -> int:
    """How often a text occurs, also where one begins before another has ended."""
    return sum(within.startswith(text, start) for start in range(len(within)))


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
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        self._require(ids, state, kwargs)
        if not isinstance(state, TextState):
            more = {} if state is None else {"state": state}
            return super().generate(ids, *args, **more, **kwargs)  # type: ignore[misc]
        state.require_model(self)  # type: ignore[arg-type]
        start = state.last[:, None]
        if ids is not None:
            if ids.shape[0] % state.batch_size:
                raise UsageError(f"state: expected {ids.shape[0]} texts or one, got {state.batch_size}")
            start = start.repeat_interleave(ids.shape[0] // state.batch_size, dim=0)
            start = torch.cat([start.to(ids.device), ids], dim=1)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            kwargs["attention_mask"] = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        else:  # or transformers takes a last token that is also the padding for padding
            kwargs["attention_mask"] = torch.ones_like(start)
        self._count_one_more(args, kwargs)
        result = super().generate(start, *args, state=state.liquid, **kwargs)  # type: ignore[misc]
        if isinstance(result, Tensor):
            return result[:, 1:]
        result.sequences = result.sequences[:, 1:]
        return result

    def _require(self, ids: Any, state: Any, options: dict[str, Any]) -> None:
        """Refuse what transformers would misunderstand, or trip over later with an error that names something else."""
        mask, cache = options.get("attention_mask"), options.get("past_key_values")
        if options.get("inputs_embeds") is not None:
            raise UsageError("inputs_embeds: this network reads token ids only")
        if not isinstance(state, TextState | LiquidState | None):
            raise UsageError(f"state: expected a TextState or a LiquidState, got {type(state).__name__}")
        check_past(state, cache)
        if ids is None:
            return
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise UsageError(f"input_ids: expected a tensor (B, T), got {got}")
        if ids.shape[1] == 0:
            raise UsageError(f"input_ids: expected (B, T) with T >= 1, got {tuple(ids.shape)}")
        if cache is not None and cache.seen >= ids.shape[1]:
            raise UsageError(
                f"past_key_values: the cache has read {cache.seen} tokens, input_ids hold {ids.shape[1]}: give the "
                "whole text and at least one token more (a cache moves on with what is written)"
            )
        if mask is None:
            pad = options.get("pad_token_id", self.generation_config.pad_token_id)  # type: ignore[attr-defined]
            ends = ids[:, -1] == (-1 if pad is None else pad)
            padded = ids.shape[1] > 1 and bool(ends.any()) and not bool(ends.all())
        elif mask.shape != ids.shape:
            raise UsageError(f"attention_mask: expected {tuple(ids.shape)}, got {tuple(mask.shape)}")
        else:
            padded = not bool(mask[:, -1].all())
        if padded:
            raise UsageError(
                "attention_mask: padding is on the right, where the text goes on; tokenizer.padding_side = 'left'"
            )

    def _count_one_more(self, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Lengths count the token before the text, which is read again and cut off at the end."""
        config = options.get("generation_config") or (args[0] if args else None)
        for name in ("max_length", "min_length"):
            places = (options.get(name), getattr(config, name, None), getattr(self.generation_config, name))  # type: ignore[attr-defined]
            length = next((value for value in places if value), None)
            if length:
                options[name] = length + 1
        if options.get("max_new_tokens") or getattr(config, "max_new_tokens", None):
            options.pop("max_length", None)

    def _get_stopping_criteria(
        self, generation_config: Any, stopping_criteria: StoppingCriteriaList | None, tokenizer: Any = None, **more: Any
    ) -> StoppingCriteriaList:
        texts, generation_config.stop_strings = generation_config.stop_strings, None
        try:
            found = super()._get_stopping_criteria(generation_config, stopping_criteria, tokenizer=tokenizer, **more)  # type: ignore[misc]
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
        given = model_kwargs.get("past_key_values")
        if given is not None:
            given.require_model(self)
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
