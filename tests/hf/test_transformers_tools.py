"""Tools of the transformers world that meet our network: pipelines, streamers, constraints, the Trainer, LoRA."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
from outcomes import STORY
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import logging

from ltc_textgen.config import RunConfig
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer
from ltc_textgen.errors import UsageError
from ltc_textgen.generation.native import why_not
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.runs import save_run, save_weights

# The Trainer and peft use names that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CHARACTERS, BYTES = character_tokenizer(STORY), byte_tokenizer()
SETTINGS = {"block": "liquid", "coupling": "diagonal", "hidden_size": 12, "num_layers": 2, "steps": 2, "step_size": 0.5}
PLAIN = {"hidden_size": 12, "steps": 2, "step_size": 0.5}
GREEDY = {"max_new_tokens": 12, "do_sample": False}
PROMPT = "On day 7 the sea"


def directory(path: Path, own: TextTokenizer, settings: dict | None = None) -> Path:
    """A run directory of an untrained model."""
    torch.manual_seed(0)
    config = RunConfig.parse({"model": settings or SETTINGS})
    model = LiquidTimeConstantNetwork.from_settings(config.model_config_for(own.vocab_size))
    save_run(path, model, own, config, {})
    save_weights(path / "model.safetensors", model, {"tokenizer": own.fingerprint})
    return path


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("runs") / "characters", CHARACTERS)


@pytest.fixture(scope="module")
def bytes_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("runs") / "bytes", BYTES)


@pytest.fixture
def model(characters: Path) -> LiquidTimeConstantNetwork:
    return AutoModelForCausalLM.from_pretrained(characters)


@pytest.fixture
def tokenizer(characters: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(characters)


def encode(text: str = PROMPT) -> torch.Tensor:
    return torch.tensor([CHARACTERS.encode(text)])


# --- tokenizers and pipelines


@pytest.mark.parametrize(("own", "run"), [(CHARACTERS, "characters"), (BYTES, "bytes_")])
def test_the_tokenizer_of_a_run_directory(own: TextTokenizer, run: str, request: pytest.FixtureRequest) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(run))
    text = "On day 7 the sea was calm, <|separator|>\n"
    assert len(tokenizer) == own.vocab_size
    assert tokenizer(text).input_ids == own.encode(text)
    assert tokenizer.decode(own.encode(STORY[:300])) == STORY[:300]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == own.eos_token_id
    batch = tokenizer(["On", "On day"], return_tensors="pt", padding=True)
    assert batch.attention_mask[0].tolist() == [0] * 4 + [1] * 2, "padding is on the left"


def test_pipeline(
    model: LiquidTimeConstantNetwork,
    tokenizer: PreTrainedTokenizerBase,
    characters: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("ERROR")
    logging.enable_propagation()
    write = pipeline("text-generation", model=str(characters), device="cpu")
    logging.disable_propagation()
    assert not caplog.records, "the network is known to be one that writes text"
    assert type(write.model) is LiquidTimeConstantNetwork
    expected = tokenizer.decode(model.generate(encode(), **GREEDY)[0], skip_special_tokens=True)
    assert write(PROMPT, **GREEDY)[0]["generated_text"] == expected
    prompts = [PROMPT, "the boat came", "On"]
    alone = [write(prompt, **GREEDY)[0]["generated_text"] for prompt in prompts]
    together = write(prompts, batch_size=3, **GREEDY)
    assert [texts[0]["generated_text"] for texts in together] == alone
    sampling = {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 3, "return_full_text": False}
    torch.manual_seed(1)
    samples = [sample["generated_text"] for sample in write(PROMPT, **sampling)]
    assert len(set(samples)) == 3
    torch.manual_seed(1)
    assert [sample["generated_text"] for sample in write(PROMPT, **sampling)] == samples


def test_a_tokenizer_that_knows_more_than_the_model_is_named(
    model: LiquidTimeConstantNetwork, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.add_tokens(["☃"])
    size = CHARACTERS.vocab_size
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    with pytest.raises(UsageError, match=f"input_ids: expected 0 to {size - 1}, got {size}"):
        write("On ☃", **GREEDY)
    model.resize_token_embeddings(len(tokenizer))
    assert write("On ☃", **GREEDY)[0]["generated_text"].startswith("On ☃")


# --- streams and stops


@pytest.mark.slow
@pytest.mark.parametrize("run", ["characters", "bytes_"])
def test_streamers_write_the_text_that_results(
    run: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    place = request.getfixturevalue(run)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    options = {"max_new_tokens": 60, "do_sample": True, "bad_words_ids": [[tokenizer.eos_token_id]]}
    torch.manual_seed(5)
    expected = tokenizer.decode(model.generate(ids, **options)[0, ids.shape[1] :])
    assert len(expected) > 30
    torch.manual_seed(5)
    capsys.readouterr()
    model.generate(ids, streamer=TextStreamer(tokenizer, skip_prompt=True), **options)
    assert capsys.readouterr().out == expected + "\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    torch.manual_seed(5)
    thread = Thread(target=model.generate, args=(ids,), kwargs=options | {"streamer": streamer})
    thread.start()
    assert "".join(streamer) == expected
    thread.join()


class Stop(StoppingCriteria):
    """At a token; counts what it is asked."""

    def __init__(self, token: int) -> None:
        self.token, self.asked = token, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.asked += 1
        return input_ids[:, -1] == self.token


def test_stopping_criteria(model: LiquidTimeConstantNetwork, tokenizer: PreTrainedTokenizerBase) -> None:
    def only(*texts: str) -> Callable[[int, torch.Tensor], list[int]]:
        """What is written is these texts, one character after the other."""
        start = encode().shape[1]
        return lambda row, ids: [CHARACTERS.encode(texts[row])[len(ids) - start]]

    stop = Stop(CHARACTERS.encode(",")[0])
    forced = {"prefix_allowed_tokens_fn": only("wild, and so on")}
    ids = model.generate(encode(), stopping_criteria=StoppingCriteriaList([stop]), **GREEDY | forced)
    assert tokenizer.decode(ids[0]) == f"{PROMPT}wild,"
    assert stop.asked == 5
    both = encode().repeat(2, 1)
    forced = {"prefix_allowed_tokens_fn": only("wild, and so on", "calm the seas and")}
    both = {"inputs": both, "attention_mask": torch.ones_like(both)}
    ids = model.generate(**both, stopping_criteria=StoppingCriteriaList([Stop(stop.token)]), **GREEDY | forced)
    first, second = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert (first, second) == (f"{PROMPT}wild,", f"{PROMPT}calm the sea")
    forced = {"prefix_allowed_tokens_fn": only("wild, and so on")}
    ids = model.generate(encode(), stop_strings=["d, a"], tokenizer=tokenizer, **GREEDY | forced)
    assert tokenizer.decode(ids[0]) == f"{PROMPT}wild, a"


def test_a_stop_inside_a_character(bytes_: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(bytes_), AutoTokenizer.from_pretrained(bytes_)
    ids = tokenizer("caf", return_tensors="pt").input_ids
    wanted = "é 世界".encode()

    def forced(row: int, ids: torch.Tensor) -> list[int]:
        return [wanted[len(ids) - 3]]

    for count, text in ((1, "caf\ufffd"), (2, "café"), (4, "café \ufffd"), (6, "café 世")):
        streamer = TextIteratorStreamer(tokenizer, timeout=60)
        options = {"max_new_tokens": count, "do_sample": False, "prefix_allowed_tokens_fn": forced}
        result = model.generate(ids, streamer=streamer, return_dict_in_generate=True, **options)
        assert tokenizer.decode(result.sequences[0]) == text
        assert "".join(streamer) == text
        rest = options | {"max_new_tokens": len(wanted) - count}
        whole = model.generate(result.sequences, past_key_values=result.past_key_values, **rest)
        assert tokenizer.decode(whole[0]) == "café 世界", "nothing is lost when it continues"


# --- constraints, and caches that are continued


FIRST = {"prefix_allowed_tokens_fn": lambda row, ids: [3, 5, 8, 13] if len(ids) % 2 else [2, 4, 6]}
CONSTRAINTS = [
    {"bad_words_ids": "what it would write"},
    {"min_new_tokens": 9, "eos_token_id": list(range(CHARACTERS.vocab_size - 1))},
    FIRST,
    {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SETTINGS, PLAIN], ids=["liquid", "plain"])
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=["bad words", "least", "prefix", "repetition"])
def test_constraints_hold_with_and_without_a_cache(constraint: dict, mode: dict, settings: dict) -> None:
    torch.manual_seed(2)
    model = LiquidTimeConstantNetwork(CHARACTERS.vocab_size, **settings).eval()
    ids = torch.cat([encode("the sea"), encode("the boa")])
    options = GREEDY | {"pad_token_id": CHARACTERS.eos_token_id} | mode
    free = model.generate(ids, **options)
    if "bad_words_ids" in constraint:
        written = set(free[:, ids.shape[1] :].flatten().tolist())
        constraint = {"bad_words_ids": [[token] for token in written] + [[1, 2]]}
    bound = model.generate(ids, **options | constraint)
    assert bound.equal(model.generate(ids, use_cache=False, **options | constraint))
    if "min_new_tokens" in constraint:
        assert (bound[:, ids.shape[1] :][:, :9] == CHARACTERS.vocab_size - 1).all(), "the only one that ends nothing"
    assert not bound.equal(free)
    new = bound[:, ids.shape[1] :]
    if "bad_words_ids" in constraint:
        assert not set(new.flatten().tolist()) & written
    if constraint is FIRST:
        assert set(new[:, ::2].unique().tolist()) <= {3, 5, 8, 13}
        assert set(new[:, 1::2].unique().tolist()) <= {2, 4, 6}


@pytest.mark.parametrize("mode", [{}, {"do_sample": True}], ids=["greedy", "sampling"])
def test_a_returned_cache_continues(mode: dict, model: LiquidTimeConstantNetwork) -> None:
    options = GREEDY | mode
    first = model.generate(encode(), return_dict_in_generate=True, **options)
    cache = first.past_key_values
    assert cache.get_seq_length() == first.sequences.shape[1] - 1, "the last token has not been read"
    asked = torch.cat([first.sequences, encode(", and")], dim=1)
    torch.manual_seed(4)
    whole = model.generate(asked, **options)
    torch.manual_seed(4)
    assert model.generate(asked, past_key_values=cache, **options).equal(whole)


# --- training by others


class Windows(torch.utils.data.Dataset):
    """Windows of the story."""

    def __init__(self, size: int = 32) -> None:
        self.rows = torch.tensor(CHARACTERS.encode(STORY[: 64 * size])).view(64, size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def arguments(place: Path, **more: object) -> TrainingArguments:
    return TrainingArguments(
        str(place),
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=2e-2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        # The Trainer looks for every argument of `forward` with "label" in its name, and shift_labels is another way.
        label_names=["labels"],
        **more,
    )


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer(checkpointing: bool, model: LiquidTimeConstantNetwork, tmp_path: Path) -> None:
    options = arguments(tmp_path, gradient_accumulation_steps=2, gradient_checkpointing=checkpointing)
    trainer = Trainer(model=model, args=options, train_dataset=Windows(), eval_dataset=Windows())
    start = model.eval()(Windows().rows, labels=Windows().rows).loss.item()
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 20
    assert losses[0] == pytest.approx(start, rel=0.05), "the loss is a mean over the targets, however they are divided"
    assert losses[-1] < 0.8 * losses[0]
    ours = model.eval()(Windows().rows, labels=Windows().rows).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(ours, rel=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again(encode()).logits.equal(model(encode()).logits)


def test_smoothed_labels_are_the_next_tokens(model: LiquidTimeConstantNetwork, tmp_path: Path) -> None:
    smoothing, rows = 0.1, Windows().rows[:4]
    trainer = Trainer(model=model.eval(), args=arguments(tmp_path, label_smoothing_factor=smoothing))
    loss = trainer.compute_loss(model, {"input_ids": rows, "labels": rows.clone()})
    scores = model(rows).logits[:, :-1].log_softmax(-1)
    likely, even = -scores.gather(2, rows[:, 1:, None]).mean(), -scores.mean()
    torch.testing.assert_close(loss, (1 - smoothing) * likely + smoothing * even)


TARGETS = {"gate": "gate", "out": "out", "input": "cell.input", "head": "lm_head.projection"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_lora_learns_in_every_projection(target: str, model: LiquidTimeConstantNetwork) -> None:
    peft = pytest.importorskip("peft")
    before, rows = model(encode()).logits, Windows().rows[:8]
    assert why_not(model) == ""
    config = peft.LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM", init_lora_weights=True)
    adapted = peft.get_peft_model(model, config)
    assert why_not(model), "the native decoder does not know adapters, and says so"
    torch.testing.assert_close(adapted(encode()).logits, before, msg="an adapter that has learned nothing")
    optimizer = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=0.05)
    losses = []
    adapted.train()
    for _ in range(4):
        loss = adapted(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_" in name)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = adapted.eval()(encode()).logits
    assert not torch.allclose(after, before, atol=1e-3)
    ids = adapted.generate(input_ids=encode(), **GREEDY)
    assert ids.equal(adapted.generate(input_ids=encode(), use_cache=False, **GREEDY))
    merged = adapted.merge_and_unload()
    assert merged is model
    assert why_not(model) == ""
    torch.testing.assert_close(model(encode()).logits, after, rtol=1e-4, atol=1e-4)


def test_lora_is_saved_and_loaded(model: LiquidTimeConstantNetwork, characters: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=["gate", "out", "cell.input"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(characters)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert again(encode()).logits.equal(adapted(encode()).logits)


@pytest.mark.parametrize("coupling", ["full", "cfc"])
def test_lora_on_the_inputs_of_other_couplings(coupling: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = LiquidTimeConstantNetwork(CHARACTERS.vocab_size, coupling=coupling, **PLAIN).eval()
    before = model(encode()).logits
    names = [name for name, module in model.named_modules() if name.endswith(".input")]
    assert names
    config = peft.LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    after = adapted(encode()).logits
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(adapted.merge_and_unload()(encode()).logits, after, rtol=1e-4, atol=1e-4)
