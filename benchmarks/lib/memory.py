"""Any language model together with an n-gram memory of its training text, static and adapting.

The same protocols as `ltc_textgen.evaluation.memory_scores`: the weights of the mixture are fitted on the first part of
the training text, which neither the model nor the counts have seen before; then it is counted too.
"""

from collections.abc import Iterator

import numpy as np
import torch

from lib.models import LanguageModel
from ltc_textgen.evaluation.memory_scores import Predictions, build_memory, fit_to_predictions, score_predictions

CHUNK = 512


@torch.inference_mode()
def predictions(model: LanguageModel, tokens: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities, (t, V), and tokens, (t,), of a text after its first token.

    A recurrent network carries its state. A transformer reads windows of its context length that overlap by three
    quarters, so that every token but the first ones has at least that much context.
    """
    model.eval()
    state, at, pairs = None, 0, len(tokens) - 1
    while at < pairs:
        start, end = at, min(at + CHUNK, pairs)
        if model.context is not None:
            end = min(pairs, model.context if at == 0 else at + max(1, model.context // 4))
            start = max(0, end - model.context)
        ids = torch.from_numpy(tokens[start:end].astype(np.int64))[None]
        hidden, state = model(ids, state)
        log_probs = torch.log_softmax(model.logits(hidden[0, at - start :]).float(), -1)
        yield log_probs.numpy(), tokens[at + 1 : end + 1].astype(np.int64)
        at = end


def uniform(vocabulary: int, tokens: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predictions of a model that knows nothing."""
    for at in range(0, len(tokens) - 1, CHUNK):
        targets = tokens[at + 1 : at + CHUNK + 1].astype(np.int64)
        yield np.full((len(targets), vocabulary), -np.log(vocabulary), np.float32), targets


def with_memory(
    model: LanguageModel | None,
    train: np.ndarray,
    held_back: np.ndarray,
    valid: np.ndarray,
    vocabulary: int,
    eos_token_id: int | None,
    order: int,
) -> dict[str, float]:
    """Nats per token over all tokens of `valid` but the first.

    Args:
        model: None for the memory alone.
        train: What the model was trained on, (T,).
        held_back: Text before it that is new to the model.
        valid: Text to score.
        vocabulary: V.
        eos_token_id: Token at which contexts end.
        order: Tokens of the longest context.

    Returns:
        "alone", and with memory "static" and "adapting".
    """

    def of(tokens: np.ndarray) -> Predictions:
        return uniform(vocabulary, tokens) if model is None else predictions(model, tokens)

    memory = build_memory(train, vocabulary, eos_token_id, order)
    mixture = fit_to_predictions(of(held_back), memory, held_back[:1])
    memory.learn(held_back)
    static = score_predictions(of(valid), valid[:1], mixture)
    adapting = score_predictions(of(valid), valid[:1], mixture.adapting())
    count = static.tokens
    return {"alone": static.network / count, "static": static.mixed / count, "adapting": adapting.mixed / count}
