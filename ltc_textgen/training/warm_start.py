"""Beginning from the weights of another run, with its tokenizer or with a new one that has some of its tokens."""

from pathlib import Path
from typing import Any

import torch

from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import UsageError
from ltc_textgen.io.tensor_names import current_names
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.runs import Run, load_run, load_settings

BY_TOKEN = ("embed_tokens.", "lm_head.")
"""Parameters with a row for each token."""


def recipe_of(directory: Path) -> dict[str, dict[str, Any]]:
    """What a run takes from the one it begins from, unless set otherwise: model settings and tokenizer.

    A vocabulary of characters is made from each text; any other tokenizer is kept.

    Raises:
        ArtifactError: If the directory is no run.
    """
    settings, tokenizer = load_settings(directory), TextTokenizer.load(directory)
    kept = settings.model_dump(mode="json", exclude={"input_size", "output_size", "dropout", "embedding_dropout"})
    name = "char" if tokenizer.kind == "char" else str(directory.absolute())
    return {"data": {"tokenizer": name}, "model": kept, "train": {"init": str(directory.absolute())}}


@torch.no_grad()
def copy_weights(model: LiquidNetwork, tokenizer: TextTokenizer, directory: Path) -> int:
    """Copy the weights of a run into a network. Rows of tokens that the run does not know stay as they are.

    Args:
        model: Network with the settings of the run, but for its vocabulary.
        tokenizer: Its tokenizer.
        directory: Run directory.

    Returns:
        How many tokens both have.

    Raises:
        ArtifactError: If the run cannot be loaded.
        UsageError: If the networks differ in more than their vocabulary.
    """
    source = load_run(directory)
    theirs = current_names(dict(source.network.state_dict()))
    mine, pairs = model.state_dict(), _shared(tokenizer, source)
    new, old = (torch.tensor(ids, dtype=torch.int64) for ids in pairs)
    for name, weight in mine.items():
        other = theirs.get(name)
        by_token = name.startswith(BY_TOKEN) and weight.shape[:1] == (tokenizer.vocab_size,)
        first = int(by_token)  # the dimensions that must be equal
        if other is None or other.shape[first:] != weight.shape[first:]:
            there = "is not there" if other is None else f"is {tuple(other.shape)} there and {tuple(weight.shape)} here"
            raise UsageError(f"--init {directory}: {name} {there}: keep the model settings of that run")
        if by_token:
            weight[new] = other[old].to(weight.dtype)
        else:
            weight.copy_(other)
    return len(new)


def _shared(tokenizer: TextTokenizer, source: Run) -> tuple[list[int], list[int]]:
    """Ids of the tokens that both tokenizers have, here and there."""
    known = {source.tokenizer.token(index): index for index in range(source.tokenizer.vocab_size)}
    pairs = [
        (index, known[token])
        for index, token in ((index, tokenizer.token(index)) for index in range(tokenizer.vocab_size))
        if token in known
    ]
    return [new for new, _ in pairs], [old for _, old in pairs]
