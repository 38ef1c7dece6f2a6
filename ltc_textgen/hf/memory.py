"""The n-gram memory in transformers' `generate`."""

from typing import Any

import torch
from transformers import LogitsProcessor

from ltc_textgen.memory import Mixture


class MemoryLogitsProcessor(LogitsProcessor):
    """Mixes an n-gram memory with the network's distribution, before temperature and the filters.

    Args:
        memory: Of the run that the model was loaded from; see `ltc_textgen.memory_of`.

    Example:
        run = load_run("runs/book")
        run.model.generate(ids, do_sample=True, logits_processor=[MemoryLogitsProcessor(memory_of(run))])
    """

    def __init__(self, memory: Mixture) -> None:
        self.memory = memory

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The mixture's log-probabilities, (B, V), after the tokens read, (B, T)."""
        contexts = self.memory.contexts_of([], len(input_ids))
        contexts = self.memory.advance(contexts, input_ids.cpu().numpy())
        mixed = self.memory.apply(scores.float().cpu().numpy(), contexts)
        return torch.from_numpy(mixed).to(scores)
