"""Batches of documents for transformers' Trainer, with the token that ends a document in the loss.

Documents end with the token that also pads. `DataCollatorForLanguageModeling` leaves every padding id out of the loss,
and with it the ends: a model that is trained so never ends a text. This one goes by the attention mask.
"""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ltc_textgen.shapes import Tensor

IGNORED = -100
"""Label of a position that is not scored."""


class DataCollatorForDocuments:
    """Pads rows of token ids and labels every token but the padding.

    Args:
        tokenizer: Pads, on its own side.
        append_eos: Whether a row without an EOS token at its end gets one.

    Example:
        trainer = Trainer(model, args, train_dataset=rows, data_collator=DataCollatorForDocuments(tokenizer))
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, append_eos: bool = False) -> None:
        self.tokenizer, self.append_eos = tokenizer, append_eos

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch of the rows' `input_ids`: these, `attention_mask` and `labels`, each (B, T)."""
        ids = [list(row["input_ids"]) for row in rows]
        end = self.tokenizer.eos_token_id
        if self.append_eos:
            ids = [row if row[-1:] == [end] else [*row, end] for row in ids]
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], IGNORED)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
