from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer, train_wordpiece
from ltc_textgen.serve.spelling import spellings


def test_every_token_has_a_text_of_its_own() -> None:
    tokenizers = byte_tokenizer(), character_tokenizer("abc\n"), train_wordpiece(["the cats sat on mats. " * 20], 60)
    for tokenizer in tokenizers:
        spelled = spellings(tokenizer)
        assert len(set(spelled)) == tokenizer.vocab_size
        assert all(spelled)


def test_bytes_are_spelled_as_openai_does() -> None:
    spelled = spellings(byte_tokenizer())
    assert spelled[ord("a")] == "a"
    assert spelled[0xE2] == "bytes:\\xe2"
