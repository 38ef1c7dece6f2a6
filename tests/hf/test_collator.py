"""A batch of documents of different lengths keeps their ends in the loss."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import ltc_textgen  # noqa: F401
from ltc_textgen.data.train_tokenizer import character_tokenizer
from ltc_textgen.hf.collator import IGNORED, DataCollatorForDocuments


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_ends_are_labelled_and_the_padding_is_not(tmp_path, side) -> None:
    character_tokenizer("The sea was calm.").save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side=side)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end
    texts = [tokenizer(text).input_ids for text in ("The sea.", "The sea was calm.")]
    whole = DataCollatorForDocuments(tokenizer)([{"input_ids": [*ids, end]} for ids in texts])
    for row, ids in zip(whole["labels"].tolist(), texts, strict=True):
        assert [label for label in row if label != IGNORED] == [*ids, end]
    appended = DataCollatorForDocuments(tokenizer, append_eos=True)([{"input_ids": ids} for ids in texts])
    assert all(bool((appended[key] == whole[key]).all()) for key in ("input_ids", "attention_mask", "labels"))
