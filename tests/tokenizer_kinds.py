"""A tokenizer of each kind, for tests."""

from functools import cache

from hub import bert_tokenizer_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ltc_textgen.data.tokenizers import EOS_TOKEN, TextTokenizer
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer, train_wordpiece

PROSE = "The cat sat on the mat, and the dog didn't.\n\n  Indented é text: 😀 日本語\ttab\r\n" * 5


def metaspace_json() -> str:
    """A tokenizer of the kind that Llama and T5 have."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([PROSE], trainer)
    return tokenizer.to_str()


def byte_fallback_json() -> str:
    """Characters of ASCII, and bytes for the rest, as in Llama 2."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *(chr(c) for c in range(33, 127))]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer.to_str()


def gpt2_like_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE], trainer)
    return tokenizer.to_str()


@cache
def made(kind: str) -> TextTokenizer:
    match kind:
        case "char":
            return character_tokenizer(PROSE)
        case "byte":
            return byte_tokenizer()
        case "wordpiece":
            return train_wordpiece([PROSE], 700)
        case "bert":
            return TextTokenizer(bert_tokenizer_json(), "bert", "[SEP]")
        case "gpt2":
            return TextTokenizer(gpt2_like_json(), "custom", "<|endoftext|>")
        case "fallback":
            tokenizer = Tokenizer.from_str(byte_fallback_json())
            tokenizer.add_special_tokens([EOS_TOKEN])
            return TextTokenizer(tokenizer.to_str(), "custom")
    return TextTokenizer(metaspace_json(), "custom", "</s>")
