"""`generate` of transformers: unsupported arguments are rejected in one line, and stop strings stop."""

import pickle
from pathlib import Path

import pytest
import torch
from outcomes import STORY
from transformers import GenerationConfig

from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer
from ltc_textgen.errors import LogitsError, UsageError
from ltc_textgen.generation import generate
from ltc_textgen.hf.config import LiquidCache
from ltc_textgen.hf.generation import StopStrings
from ltc_textgen.hf.memory import MemoryLogitsProcessor
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.kernels.library import LIBRARY
from ltc_textgen.memory import Mixture, NgramMemory

TOKENIZER = character_tokenizer(STORY)
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": TOKENIZER.eos_token_id}


def network(seed: int = 0) -> LiquidTimeConstantNetwork:
    torch.manual_seed(seed)
    more = {"block": "liquid", "coupling": "diagonal", "num_layers": 2, "steps": 2, "step_size": 0.5}
    return LiquidTimeConstantNetwork(TOKENIZER.vocab_size, 12, **more).eval()


def encode(*texts: str) -> torch.Tensor:
    return torch.tensor([TOKENIZER.encode(text) for text in texts])


def written(text: str, prompt: int) -> dict:
    """Options that make the network write `text`."""
    ids = [*TOKENIZER.encode(text), TOKENIZER.eos_token_id]
    return {"prefix_allowed_tokens_fn": lambda row, read: [ids[min(len(read) - prompt, len(ids) - 1)]]}


@pytest.mark.parametrize("in_config", [False, True])
def test_stop_strings_need_no_letters_of_the_latin_alphabet(in_config: bool) -> None:
    """transformers' own fail on a vocabulary without an f, which the story has not."""
    assert "f" not in STORY
    ids, options = encode("the boat "), {"do_sample": False, "max_new_tokens": 12}
    stop: dict = {"stop_strings": ["boat", "and"]}
    if in_config:
        config = GenerationConfig(**options, **stop)
        stop = {"generation_config": config}
        options = {}
    options |= {"pad_token_id": TOKENIZER.eos_token_id} | written("a boat and more", ids.shape[1])
    result = network().generate(ids, tokenizer=TOKENIZER, **stop, **options)
    assert TOKENIZER.decode(result[0].tolist()) == "the boat a boat", "the first one belongs to the prompt"
    if in_config:
        assert config.stop_strings == ["boat", "and"], "what was given is left as it was"


def test_a_stop_string_across_the_bytes_of_a_character() -> None:
    stop, ids = StopStrings("é!", byte_tokenizer()), list("café! é!".encode())
    ends = [bool(stop(torch.tensor([ids[:count]]), None)) for count in range(1, len(ids) + 1)]
    assert [index for index, end in enumerate(ends) if end] == [5, 9]


def test_a_stop_string_that_begins_in_the_text_before() -> None:
    stop = StopStrings("aa", TOKENIZER)
    assert [bool(stop(encode("a" * count), None)) for count in (1, 2, 3)] == [False, True, True]
    assert not bool(stop(encode("aa "), None))


@pytest.mark.parametrize(
    ("texts", "tokenizer", "message"),
    [("a", None, "give generate the tokenizer"), ([], TOKENIZER, "not empty"), (["a", ""], TOKENIZER, "not empty")],
)
def test_stop_strings_that_cannot_be(texts: object, tokenizer: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        network().generate(encode("the"), stop_strings=texts, tokenizer=tokenizer, **GREEDY)


def test_a_cache_belongs_to_the_model_that_filled_it() -> None:
    model, other, ids = network(), network(1), encode("the sea")
    cache = other(ids[:, :-1]).past_key_values
    with pytest.raises(UsageError, match="cache"):
        model.generate(ids, past_key_values=cache, **GREEDY)
    with pytest.raises(UsageError, match="cache"):
        model(ids[:, -1:], past_key_values=cache)
    expected = other.generate(ids, **GREEDY)
    assert other.generate(ids, past_key_values=cache, **GREEDY).equal(expected)
    free = LiquidCache(model(ids[:, :-1]).state, ids.shape[1] - 1)  # a state is numbers alone
    assert model.generate(ids, past_key_values=free, **GREEDY).equal(model.generate(ids, **GREEDY))


def test_a_cache_that_has_read_as_much_as_it_is_given() -> None:
    model, ids = network(), encode("the sea")
    first = model.generate(ids, return_dict_in_generate=True, **GREEDY)
    for text in (ids, first.sequences[:, : first.past_key_values.seen]):
        with pytest.raises(UsageError, match="12 tokens"):
            model.generate(text, past_key_values=first.past_key_values, **GREEDY)
    more = model.generate(first.sequences, past_key_values=first.past_key_values, **GREEDY)
    assert more.equal(model.generate(ids, **GREEDY | {"max_new_tokens": 12}))


def test_a_cache_does_not_go_back_and_is_something() -> None:
    cache = network()(encode("the sea")).past_key_values
    with pytest.raises(UsageError, match="past_key_values"):
        cache.crop(-2)
    cache.crop(0)
    assert cache
    assert LiquidCache()
    again = pickle.loads(pickle.dumps(cache))
    assert again.seen == cache.seen
    assert again.state.neurons[0].equal(cache.state.neurons[0])


def padded(right: bool) -> torch.Tensor:
    long, short = TOKENIZER.encode("the sea"), TOKENIZER.encode("sea")
    pad = [TOKENIZER.eos_token_id] * (len(long) - len(short))
    return torch.tensor([long, short + pad if right else pad + short])


def test_padding_on_the_right_without_a_mask() -> None:
    model = network()
    with pytest.raises(UsageError, match="padding"):
        model.generate(padded(right=True), **GREEDY)
    model.generate(padded(right=False), **GREEDY)
    model.generate(torch.full((3, 1), TOKENIZER.eos_token_id), **GREEDY)


@pytest.mark.parametrize("shape", [(1, 3), (2, 7), (7,)])
def test_masks_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"attention_mask: expected \(1, 7\)"):
        network().generate(encode("the sea"), attention_mask=torch.ones(shape, dtype=torch.int64), **GREEDY)


def test_state_and_cache_exclude_each_other() -> None:
    model, ids = network(), encode("the sea")
    cache = model(ids[:, :-1]).past_key_values
    for state in (model.read(ids), cache.state):
        with pytest.raises(UsageError, match="state.*past_key_values"):
            model.generate(ids, state=state, past_key_values=cache, **GREEDY)
    with pytest.raises(UsageError, match="state.*past_key_values"):
        model(ids[:, -1:], state=cache.state, past_key_values=cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 2, 12)}, "inputs_embeds"),
        ({"inputs": torch.zeros(3, dtype=torch.int64)}, r"input_ids: expected a tensor \(B, T\), got \(3,\)"),
        ({"input_ids": [[1, 2]]}, "got list"),
        ({"inputs": torch.zeros(1, 0, dtype=torch.int64)}, "with T >= 1"),
    ],
)
def test_arguments_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        network().generate(**options, **GREEDY)


def test_forward_says_what_it_has_not() -> None:
    model, ids = network(), encode("the sea")
    with pytest.raises(UsageError, match="output_attentions"):
        model(ids, output_attentions=True)
    with pytest.raises(UsageError, match="inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(1, 2, 12))
    labels = ids.clone()
    labels[0, 3] = 99
    with pytest.raises(UsageError, match=r"labels: expected 0 to \d+, or -100, got 99"):
        model(ids, labels=labels)


def test_logits_of_named_tokens() -> None:
    model, ids = network(), encode("the sea")
    every = model(ids).logits
    assert model(ids, logits_to_keep=torch.tensor([1, 4])).logits.allclose(every[:, [1, 4]], atol=1e-6)
    assert model(ids, logits_to_keep=2).logits.allclose(every[:, -2:], atol=1e-6)


def test_constraints_that_leave_nothing_do_not_blame_the_weights() -> None:
    every = list(range(TOKENIZER.vocab_size))
    with pytest.raises(LogitsError, match="sequence 0"):
        network().generate(encode("the"), min_length=5, eos_token_id=every, max_new_tokens=4, do_sample=False)


def test_a_broken_state_is_named() -> None:
    model, ids = network(), encode("the")
    state = model(ids).state.map(lambda tensor: tensor * float("nan"))
    with pytest.raises(LogitsError, match="state"):
        model.generate(ids, state=state, **GREEDY)


@pytest.mark.parametrize("way", ["argument", "config", "model's own"])
def test_lengths_count_the_text_and_not_what_was_read_before(way: str, tmp_path: Path) -> None:
    model = network()
    state = model.read(encode("the sea"))
    lengths = {"max_length": 5, "min_length": 4}
    options: dict = {"do_sample": False, "pad_token_id": 0, "eos_token_id": list(range(1, TOKENIZER.vocab_size))}
    if way == "argument":
        options |= lengths
    elif way == "config":
        options = {"generation_config": GenerationConfig(**lengths, **options)}
    else:
        model.generation_config.update(**lengths)
    result = model.generate(state=state, **options)
    assert result.shape[1] in (4, 5)
    assert (result[0, :3] == 0).all(), "everything else would end it before the least length"
    options = {"do_sample": False, "pad_token_id": 0, "max_length": 5}
    assert model.generate(state=state, **options).shape[1] == 5


@pytest.mark.skipif(LIBRARY is None, reason="no compiled kernels here")
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_the_memory_writes_what_it_writes_without_transformers(share: float) -> None:
    model, memory = network(), NgramMemory(TOKENIZER.vocab_size, 5, TOKENIZER.eos_token_id)
    memory.learn(TOKENIZER.encode(STORY))
    mixture, ids = Mixture.start(memory).with_share(share), encode("On day 3", "the boat")
    ids = ids[:, :8]
    options = GREEDY | {"max_new_tokens": 20}
    result = model.generate(ids, logits_processor=[MemoryLogitsProcessor(mixture)], **options)
    plain = model.generate(ids, **options)
    assert (result == plain).all() == (share == 0)
    for row, prompt in zip(result, ids, strict=True):
        sampling = SamplingConfig(max_tokens=20, temperature=0.0)
        (text,) = generate(
            model, TOKENIZER, TOKENIZER.decode(prompt.tolist()), sampling, memory=mixture, engine="torch"
        )
        expected = TOKENIZER.decode([i for i in row[8:].tolist() if i != TOKENIZER.eos_token_id])
        assert text.text == expected
