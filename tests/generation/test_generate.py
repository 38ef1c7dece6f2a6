import json
import math
import os
import string
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from ltc_textgen.config import ModelConfig, SamplingConfig
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer, read_tokenizer, train_wordpiece
from ltc_textgen.errors import UsageError
from ltc_textgen.generation import LogitsError, generate, generate_stream
from ltc_textgen.generation.engines import NativeEngine, Request, TorchEngine, open_engine
from ltc_textgen.generation.sampling import UniformStreams
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.network import CHUNK, read
from ltc_textgen.model.state import LiquidState

GREEDY = SamplingConfig(temperature=0, max_tokens=20)
BERT = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "cat",
    "##s",
    "don",
    "'",
    "t",
    '"',
    ".",
    ",",
    "(",
    ")",
    "@",
    "1",
    "000",
]


class Scripted(LiquidTimeConstantNetwork):
    """Writes the given tokens after a prompt of `skip` tokens, whatever it reads; its state is the number of tokens."""

    def __init__(self, vocabulary, script, skip=1):
        super().__init__(vocabulary, len(script), vocabulary)
        self.reads = []
        self.skip = skip
        with torch.no_grad():
            self.lm_head.projection.weight.zero_()[script, torch.arange(len(script))] = 50.0
            self.lm_head.projection.bias.zero_()

    def advance(self, input_ids, state=None, elapsed=None, mask=None):
        self.reads.append(input_ids.clone())
        before = self.initial_state(input_ids.shape[0]) if state is None else state
        count = before.neurons[0][:, :1] + torch.arange(1, input_ids.shape[1] + 1)
        place = (count.long() - self.skip).clamp(0, self.settings.hidden_size - 1)
        after = count[:, -1:].expand(-1, self.settings.hidden_size)
        return F.one_hot(place, self.settings.hidden_size).float(), LiquidState((after,), before.conv_state)


def make_model(tokenizer, seed=0, ends=True, **more):
    torch.manual_seed(seed)
    settings = {"hidden_size": 16, "coupling": "diagonal", "block": "liquid", "num_layers": 2, "dropout": 0.5} | more
    model = LiquidTimeConstantNetwork.from_settings(ModelConfig(input_size=tokenizer.vocab_size, **settings))
    with torch.no_grad():
        model.lm_head.projection.weight.mul_(4)
        if not ends:
            model.lm_head.projection.bias[tokenizer.eos_token_id] = -1e4
    return model


@pytest.fixture(scope="module")
def chars():
    return character_tokenizer(string.ascii_letters + " \n")


@pytest.fixture(scope="module")
def model(chars):
    model = make_model(chars)
    with torch.no_grad():
        model.lm_head.projection.bias[chars.eos_token_id] += 4  # texts of different lengths
    return model


@pytest.fixture
def bert(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(BERT), encoding="utf-8")
    return read_tokenizer(path, "bert")


def slow_reference(model, tokenizer, prompt, sampling, sample):
    """Reads everything again for each token; transformers' processors; the draw by counting."""
    model.eval()
    ids = tokenizer.encode(prompt)
    start = len(ids)
    streams = UniformStreams(sampling.seed or 0, range(sample, sample + 1))
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    while len(ids) - start < sampling.max_tokens:
        with torch.no_grad():
            logits = processors(torch.tensor([ids]), model(torch.tensor([ids])).logits[:, -1])
        uniform = float(streams.next()) if sampling.temperature else 0.0
        chances = logits.double().softmax(1).cumsum(1)[0]
        token = int((chances <= uniform * chances[-1]).sum()) if sampling.temperature else int(logits.argmax())
        ids.append(token)
        if token == tokenizer.eos_token_id:
            break
    return ids[start:]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature=0, max_tokens=25),
        SamplingConfig(temperature=0, max_tokens=25, repetition_penalty=1.5),
        SamplingConfig(temperature=1.1, max_tokens=25, seed=5, num_samples=3),
        SamplingConfig(temperature=0.7, max_tokens=25, seed=6, num_samples=6, repetition_penalty=4.0, top_k=5),
    ],
)
def test_writes_what_a_slow_loop_over_the_whole_text_writes(model, chars, sampling):
    prompt = "abba cafe"
    for completion in generate(model, chars, prompt, sampling):
        ids = slow_reference(model, chars, prompt, sampling, completion.sample)
        assert completion.text == chars.decode(ids)
        assert completion.tokens == len(ids)
        assert completion.finish_reason == ("stop" if ids[-1] == chars.eos_token_id else "length")
        assert completion.prompt_tokens == len(prompt)


def test_same_seed_same_text_and_a_drawn_seed_is_reported(model, chars):
    sampling = SamplingConfig(max_tokens=40, seed=3)
    [first], [again] = generate(model, chars, "a", sampling), generate(model, chars, "a", sampling)
    assert first.text == again.text
    assert first.seed == 3
    [other] = generate(model, chars, "a", sampling.model_copy(update={"seed": 4}))
    assert other.text != first.text
    [drawn], [different] = (generate(model, chars, "a", SamplingConfig(max_tokens=40)) for _ in range(2))
    assert drawn.seed != different.seed
    [repeated] = generate(model, chars, "a", SamplingConfig(max_tokens=40, seed=drawn.seed))
    assert repeated.text == drawn.text


def test_a_sample_does_not_depend_on_its_batch_mates(model, chars):
    sampling = SamplingConfig(max_tokens=60, seed=9, num_samples=6, repetition_penalty=1.2, temperature=1.5)
    together = generate(model, chars, "abc", sampling)
    assert [c.sample for c in together] == list(range(6))
    assert len({c.text for c in together}) == 6
    assert len({c.tokens for c in together}) > 2, "samples must end at different times for this test to mean something"
    for count in (1, 3):
        fewer = generate(model, chars, "abc", sampling.model_copy(update={"num_samples": count}))
        assert [c.text for c in fewer] == [c.text for c in together[:count]]


def test_stop_string_over_several_tokens_is_never_shown(chars):
    script = chars.encode("abc\nabd\nabe")
    scripted = Scripted(chars.vocab_size, script)
    sampling = SamplingConfig(temperature=0, max_tokens=11, stop=("\nabe", "zzz"))
    pieces = list(generate_stream(scripted, chars, "a", sampling))
    assert "".join(piece.text for piece in pieces) == "abc\nabd"
    assert [piece.text for piece in pieces] == ["a", "b", "c", "\nab" + "d", ""]
    assert [piece.finish_reason for piece in pieces] == [None] * 4 + ["stop"]
    assert pieces[-1].tokens == 11
    [cut] = generate(scripted, chars, "a", sampling.model_copy(update={"max_tokens": 10}))
    assert (cut.text, cut.finish_reason) == ("abc\nabd\nab", "length")


def test_the_eos_token_ends_a_text(chars):
    script = [*chars.encode("ab"), chars.eos_token_id, *chars.encode("cd")]
    [completion] = generate(Scripted(chars.vocab_size, script), chars, "a", GREEDY)
    assert (completion.text, completion.tokens, completion.finish_reason) == ("ab", 3, "stop")


def test_a_text_ends_with_a_whole_character():
    tokens = byte_tokenizer()
    script = tokens.encode("é€")
    scripted = Scripted(tokens.vocab_size, script)
    pieces = list(generate_stream(scripted, tokens, "a", SamplingConfig(temperature=0, max_tokens=4)))
    assert [piece.text for piece in pieces] == ["é", ""]
    [ended] = generate(Scripted(tokens.vocab_size, [*script[:4], tokens.eos_token_id]), tokens, "a", GREEDY)
    assert (ended.text, ended.tokens, ended.finish_reason) == ("é", 5, "stop")
    whole = list(generate_stream(scripted, tokens, "a", SamplingConfig(temperature=0, max_tokens=5)))
    assert [piece.text for piece in whole] == ["é", "€"]


@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece", "bert"])
@pytest.mark.parametrize("seed", range(4))
def test_streamed_text_is_the_decoded_text(kind, seed, chars, bert):
    tokenizer = {
        "char": lambda: chars,
        "byte": byte_tokenizer,
        "wordpiece": lambda: train_wordpiece(["the cat sat on the mat, the dog too. " * 20], 600),
        "bert": lambda: bert,
    }[kind]()
    draw = torch.Generator().manual_seed(seed)
    script = torch.randint(tokenizer.vocab_size, (60,), generator=draw)
    script = script[script != tokenizer.eos_token_id].tolist()
    prompt = "the cat" if kind != "char" else "beef cafe"
    ids = tokenizer.encode(prompt)
    scripted = Scripted(tokenizer.vocab_size, script, skip=len(ids))
    sampling = SamplingConfig(temperature=0, max_tokens=len(script))
    pieces = list(generate_stream(scripted, tokenizer, prompt, sampling))
    text = "".join(piece.text for piece in pieces)
    assert tokenizer.decode(ids) + text == tokenizer.decode([*ids, *script]).rstrip("\N{REPLACEMENT CHARACTER}")
    assert len(pieces) > 10
    [completion] = generate(scripted, tokenizer, prompt, sampling)
    assert completion.text == text


def test_the_text_continues_where_the_prompt_ends(bert):
    def continuation(prompt, words):
        script = [BERT.index(word) for word in words]
        model = Scripted(len(BERT), [*script, bert.eos_token_id], skip=max(1, len(bert.encode(prompt))))
        return generate(model, bert, prompt, GREEDY)[0].text

    assert continuation("the cat", ["##s", "don"]) == "s don"
    assert continuation("the cat", ["cat", "."]) == " cat."
    assert continuation("the (", ["cat", ")"]) == "cat)"
    assert continuation("don'", ["t", "the"]) == "t the"
    assert continuation('the "cat', ['"', "the"]) == '" the'
    assert continuation("", ["the", "cat"]) == "the cat"


def test_empty_prompt_starts_after_an_eos_token(chars):
    scripted = Scripted(chars.vocab_size, chars.encode("ab"))
    [completion] = generate(scripted, chars, "", SamplingConfig(temperature=0, max_tokens=2, repetition_penalty=1.1))
    assert scripted.reads[0].tolist() == [[chars.eos_token_id]]
    assert (completion.text, completion.prompt_tokens) == ("ab", 1)


def test_prompt_without_tokens_is_rejected_at_once(bert):
    with pytest.raises(UsageError, match=r"prompt.*' \\n '"):
        generate_stream(make_model(bert), bert, " \n ", GREEDY)


def test_unknown_characters_are_named(model, chars):
    notes = []
    generate(model, chars, "aéaéΩ", SamplingConfig(max_tokens=1), notify=notes.append)
    (note,) = notes
    assert all(fact in note for fact in ("3", "5", "'é'", "'Ω'"))
    with pytest.warns(UserWarning, match="'é'"):
        generate(model, chars, "é", SamplingConfig(max_tokens=1))


def test_foreign_tokenizer_is_rejected_at_once(model):
    with pytest.raises(UsageError, match=r"257.*56"):
        generate_stream(model, byte_tokenizer(), "a", GREEDY)
    tokenizer = byte_tokenizer()
    with pytest.raises(UsageError, match=r"257.*300"):
        generate_stream(LiquidTimeConstantNetwork(257, 8, 300), tokenizer, "a", GREEDY)


def test_broken_weights_are_named(chars):
    broken = make_model(chars)
    with torch.no_grad():
        broken.layers[1].norm.weight.fill_(math.nan)
    with pytest.raises(LogitsError, match="sample 0"):
        generate(broken, chars, "a", GREEDY)


def test_modes_are_left_as_they_were(chars):
    model = make_model(chars, ends=False)
    model.train()
    model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert len(set(before.values())) == 2
    stream = generate_stream(model, chars, "ab", SamplingConfig(max_tokens=50))
    next(stream)
    assert not model.training
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    stream.close()
    assert {name: module.training for name, module in model.named_modules()} == before
    generate(model, chars, "ab", SamplingConfig(max_tokens=3))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off_while_writing(chars):
    model = make_model(chars, ends=False)
    model.train()
    [training] = generate(model, chars, "ab", GREEDY)
    model.eval()
    [evaluating_] = generate(model, chars, "ab", GREEDY)
    assert training.text == evaluating_.text


def test_long_prompts_are_read_in_chunks(chars):
    scripted = Scripted(chars.vocab_size, chars.encode("ab"), skip=3 * CHUNK + 7)
    [completion] = generate(scripted, chars, "a" * (3 * CHUNK + 7), SamplingConfig(temperature=0, max_tokens=2))
    assert [ids.shape[1] for ids in scripted.reads] == [CHUNK] * 3 + [6, 1, 1]
    assert CHUNK <= 4096
    assert completion.text == "ab"


def test_chunks_do_not_change_what_was_read(model):
    ids = torch.randint(12, (2, 23), generator=torch.Generator().manual_seed(0))
    with evaluating(model):
        hidden, state = read(model, ids)
        for chunk in (1, 7, 23, 100):
            cut_hidden, cut_state = read(model, ids, chunk=chunk)
            torch.testing.assert_close(cut_hidden, hidden, atol=1e-5, rtol=1e-5)
            for ours, whole in zip(cut_state.tensors().values(), state.tensors().values(), strict=True):
                torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-5)


MEMORY_PROBE = """
import gc, json, tracemalloc
import psutil
from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.train_tokenizer import character_tokenizer
from ltc_textgen.generation import generate_stream
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
chars = character_tokenizer("abcdefgh ")
model = LiquidTimeConstantNetwork(chars.vocab_size, 8, steps=1, step_size=1.0)
model.lm_head.projection.bias.data[chars.eos_token_id] = -1e4
sampling = SamplingConfig(max_tokens=10_000, seed=0, repetition_penalty=1.1, stop=("never this",))
found = []
tracemalloc.start()
for piece in generate_stream(model, chars, "abc", sampling):
    if piece.tokens in (2000, 10_000):
        gc.collect()
        found.append((tracemalloc.get_traced_memory()[0], psutil.Process().memory_info().rss))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text():
    # In a process of its own, where nothing else allocates and the run-time type checks cost no time.
    command = [sys.executable, "-c", MEMORY_PROBE]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
    (python_then, resident_then), (python_now, resident_now) = json.loads(done.stdout)
    assert python_now - python_then < 20_000, "a list of the ids alone would be 64 kB"
    assert resident_now - resident_then < 2_000_000


def test_completion_as_json(model, chars):
    [completion] = generate(model, chars, "a", SamplingConfig(max_tokens=5, seed=1))
    values = completion.to_dict()
    assert values["tokens_per_second"] == pytest.approx(values["tokens"] / values["seconds"])
    assert set(values) == {
        *("sample", "text", "tokens", "seconds", "prompt_tokens", "seed", "finish_reason", "tokens_per_second")
    }


def test_the_native_engine_is_not_taken_for_an_option_that_it_lacks() -> None:
    class Later(SamplingConfig):
        novelty: float = 0.0

    model = LiquidTimeConstantNetwork.from_settings(
        ModelConfig(input_size=20, hidden_size=8, block="liquid", coupling="diagonal", steps=1, step_size=1.0)
    ).eval()
    assert isinstance(open_engine(model, Request([1], Later(temperature=0.5, top_k=3, seed=1), 0, 0)), NativeEngine)
    assert isinstance(open_engine(model, Request([1], Later(novelty=0.5), 0, 0)), TorchEngine)
    for engine in ("native", "int8"):
        with pytest.raises(UsageError, match="novelty"):
            open_engine(model, Request([1], Later(novelty=0.5), 0, 0), engine)


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize(
    "tiny",
    [{"temperature": 1e-46}, {"temperature": 1e-39}, {"temperature": 5e-324}, {"top_p": 1e-300}, {"top_p": 5e-324}],
    ids=str,
)
def test_values_that_float32_rounds_to_zero_are_greedy(chars, engine, tiny):
    model = make_model(chars, ends=False)
    [greedy] = generate(model, chars, "abc", GREEDY, engine=engine)
    sampling = SamplingConfig(max_tokens=20, seed=1, **tiny)
    assert generate(model, chars, "abc", sampling, engine=engine)[0].text == greedy.text


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_the_largest_values_are_computed(chars, engine):
    model = make_model(chars, ends=False)
    large = {"temperature": 100, "top_k": 2**31 - 1, "seed": 2**63 - 1, "min_p": 1, "repetition_penalty": 100}
    for name, value in large.items():
        [text] = generate(model, chars, "abc", SamplingConfig(max_tokens=9, **{name: value}), engine=engine)
        assert text.tokens == 9


FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in FLOATS for value in (math.nan, math.inf)),
        *(("temperature", -1e-300), ("top_p", 0.0), ("repetition_penalty", 1e-46), ("seed", 2**63), ("seed", -1)),
        *(("max_tokens", 2**31), ("top_k", 2**63), ("num_samples", 2**64), ("stop", ("",))),
    ],
)
def test_what_cannot_be_computed_is_rejected(name, value):
    with pytest.raises(UsageError, match=name):
        SamplingConfig.parse({name: value})


def test_no_tokens_are_generated_if_none_are_asked_for(chars):
    scripted = Scripted(chars.vocab_size, chars.encode("ab"))
    texts = generate(scripted, chars, "a", SamplingConfig(max_tokens=0, num_samples=2, seed=4))
    assert [(text.text, text.tokens, text.seed, text.finish_reason) for text in texts] == [("", 0, 4, "length")] * 2


@pytest.mark.parametrize(
    ("kind", "stop", "named"),
    [
        *(("char", r"\n", repr("\\")), ("char", "a\n", None), ("char", "é!", "'é', '!'"), ("byte", "é\\", None)),
        *(("bert", "The", "'T'"), ("bert", "\n", repr("\n")), ("bert", "the (", None)),
    ],
)
def test_a_stop_string_that_cannot_be_generated_is_named(kind, stop, named, chars, bert):
    tokenizer = {"char": chars, "byte": byte_tokenizer(), "bert": bert}[kind]
    notes: list[str] = []
    generate(make_model(tokenizer), tokenizer, "", SamplingConfig(max_tokens=1, stop=(stop,)), notify=notes.append)
    assert [repr(stop) in note and (named or "") in note for note in notes] == ([True] if named else [])


def test_a_prompt_is_normalised_and_special_tokens_in_it_are_named() -> None:
    from ltc_textgen.generation.generate import encode_prompt

    tokenizer, said = byte_tokenizer(), list[str]()
    assert encode_prompt(tokenizer, "\ufeffThe sea\r\nwas ", said.append) == tokenizer.encode("The sea\nwas ")
    assert said == []
    encode_prompt(tokenizer, "<|im_start|>user", said.append)
    assert "<|im_start|>" in said[0]
    with pytest.raises(UsageError, match="character 1"):
        encode_prompt(tokenizer, "a\0", said.append)
