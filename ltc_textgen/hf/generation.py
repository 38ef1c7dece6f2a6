"""What `generate` of transformers needs for a liquid network: inputs, cache, checks of logits, stop strings."""

from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

from ltc_textgen.errors import LogitsError, UsageError
from ltc_textgen.hf.config import LiquidCache, check_past
from ltc_textgen.model.state import LiquidState
from ltc_textgen.model.text_state import TextState
from ltc_textgen.shapes import Bool, Int, Tensor

MARGIN = 8
"""Tokens before a stop string that are decoded with it: the first may be a part of a character."""


class FiniteLogits(LogitsProcessor):
    """Raises on logits that no token can be drawn from, where transformers would generate token 0 for ever."""

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
    """Stops a sequence at the token that completes a stop string.

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


def prepare_inputs(
    model: Any,
    ids: Any,
    args: tuple[Any, ...],
    state: Any,
    options: dict[str, Any],
) -> Tensor | None:
    """Check what `generate` was given, and add the token that a text state has not read yet.

    Args:
        model: The network.
        ids: Token ids (B, T), padded on the left, or None.
        args: Positional arguments of `generate`.
        state: Text or state to continue.
        options: Keyword arguments of `generate`; changed in place.

    Returns:
        The ids to read. After a `TextState` the first column is its last token, which the caller cuts off again.

    Raises:
        UsageError: If padding is on the right, or the state is of another model or batch.
    """
    given = options.pop("logits_processor", None) or []
    options["logits_processor"] = LogitsProcessorList([FiniteLogits(), *given])
    _check(model, ids, state, options)
    if not isinstance(state, TextState):
        if state is not None:
            options["state"] = state
        return ids
    state.require_model(model)
    start = state.last[:, None]
    if ids is not None:
        if ids.shape[0] % state.batch_size:
            raise UsageError(f"state: expected {ids.shape[0]} texts or one, got {state.batch_size}")
        start = start.repeat_interleave(ids.shape[0] // state.batch_size, dim=0)
        start = torch.cat([start.to(ids.device), ids], dim=1)
    mask = options.get("attention_mask")
    if mask is not None:
        options["attention_mask"] = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
    else:  # without a mask transformers takes a last token that is also the padding token for padding
        options["attention_mask"] = torch.ones_like(start)
    _count_one_more(model, args, options)
    options["state"] = state.liquid
    return start


def _check(model: Any, ids: Any, state: Any, options: dict[str, Any]) -> None:
    """Reject what transformers would misread, or report later under another name."""
    mask, cache = options.get("attention_mask"), options.get("past_key_values")
    if options.get("inputs_embeds") is not None:
        raise UsageError("inputs_embeds: generate reads token ids only; forward takes embeddings")
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
            f"past_key_values: the cache has read {cache.seen} tokens, input_ids hold {ids.shape[1]}: pass the whole "
            "text and at least one new token (generate advances the cache)"
        )
    if mask is None:
        pad = options.get("pad_token_id", model.generation_config.pad_token_id)
        ends = ids[:, -1] == (-1 if pad is None else pad)
        padded = ids.shape[1] > 1 and bool(ends.any()) and not bool(ends.all())
    elif mask.shape != ids.shape:
        raise UsageError(f"attention_mask: expected {tuple(ids.shape)}, got {tuple(mask.shape)}")
    else:
        padded = not bool(mask[:, -1].all())
    if padded:
        raise UsageError("attention_mask: padding is on the right, where the text continues; padding_side = 'left'")


def _count_one_more(model: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Lengths count the token before the text, which is read again and cut off at the end."""
    config = options.get("generation_config") or (args[0] if args else None)
    for name in ("max_length", "min_length"):
        places = (options.get(name), getattr(config, name, None), getattr(model.generation_config, name))
        length = next((value for value in places if value), None)
        if length:
            options[name] = length + 1
    if options.get("max_new_tokens") or getattr(config, "max_new_tokens", None):
        options.pop("max_length", None)


def initial_cache(model: Any, generation_config: Any, model_kwargs: dict[str, Any], batch_size: int) -> None:
    """Put the cache of a generation into `model_kwargs`, filled with the state that it starts from.

    Raises:
        UsageError: If the state is of another batch, or another model has filled the cache.
    """
    given = model_kwargs.get("past_key_values")
    if given is not None:
        given.require_model(model)
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
