"""A text that was read, as an object: it is continued, saved, forked and mixed, and only by its own model."""

from pathlib import Path

import pytest
import torch
from outcomes import STORY
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.train_tokenizer import character_tokenizer
from ltc_textgen.errors import ArtifactError, LogitsError, UsageError
from ltc_textgen.generation import generate
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.io.hashing import digest
from ltc_textgen.model.text_state import TextState, mix
from ltc_textgen.runs import load_run

TOKENIZER = character_tokenizer(STORY)
KINDS = [{}, {"block": "liquid", "coupling": "diagonal", "num_layers": 2}]
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
every_kind = pytest.mark.parametrize("more", KINDS, ids=["plain", "liquid"])


def network(more: dict | None = None, seed: int = 0) -> LiquidTimeConstantNetwork:
    torch.manual_seed(seed)
    size = TOKENIZER.vocab_size
    return LiquidTimeConstantNetwork(size, 12, steps=2, step_size=0.5, **(KINDS[1] if more is None else more)).eval()


def encode(text: str) -> torch.Tensor:
    return torch.tensor([TOKENIZER.encode(text)])


@every_kind
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
def test_a_text_that_was_read_continues_like_one_that_is_given(more: dict, mode: dict) -> None:
    model, text, question = network(more), STORY[:700], "On day"
    state = model.read(text, TOKENIZER)
    assert state.tokens == (700,)
    whole = model.generate(encode(text), **GREEDY | mode)
    assert model.generate(state=state, **GREEDY | mode).equal(whole[:, 700:])
    asked = model.generate(encode(text + question), **GREEDY | mode)[:, 700:]
    assert model.generate(encode(question), state=state, **GREEDY | mode).equal(asked)
    assert model.generate(state=model.read(question, TOKENIZER, state=state), **GREEDY | mode).equal(asked[:, 6:])


def test_one_state_starts_many_sequences_and_lists_become_batches() -> None:
    model = network()
    state = model.read(["On day 1", "the boat"], TOKENIZER)
    assert (state.batch_size, state.tokens) == (2, (8, 8))
    alone = [model.generate(state=model.read(t, TOKENIZER), **GREEDY) for t in ("On day 1", "the boat")]
    assert model.generate(state=state, **GREEDY).equal(torch.cat(alone))
    ids = encode("the sea").repeat(3, 1)
    many = model.generate(ids, state=state.select([1]), **GREEDY)
    assert many.equal(model.generate(encode("the boatthe sea"), **GREEDY)[:, 8:].expand(3, -1))
    with pytest.raises(UsageError, match="3 texts.*2"):
        model.generate(ids, state=state, **GREEDY)


def test_times_between_tokens_count() -> None:
    model, text = network(), "On day 1 the sea"
    times = torch.linspace(0.2, 3.0, len(text))
    state = model.read(text, TOKENIZER, elapsed=times)
    _, expected = model.advance(encode(text)[:, :-1], elapsed=times[None, :-1])
    for ours, theirs in zip(state.liquid.neurons, expected.neurons, strict=True):
        torch.testing.assert_close(ours, theirs.detach())
    halves = model.read(text[:5], TOKENIZER, elapsed=times[:5])
    halves = model.read(text[5:], TOKENIZER, state=halves, elapsed=times[5:], gap=float(times[4]))
    torch.testing.assert_close(halves.liquid.neurons[0], state.liquid.neurons[0])
    assert not torch.allclose(model.read(text, TOKENIZER).liquid.neurons[0], state.liquid.neurons[0])


@every_kind
def test_a_file_of_a_few_kilobytes_holds_the_whole(more: dict, tmp_path: Path) -> None:
    model, path = network(more), tmp_path / "book.state"
    state = model.read(["On day 1", "the boat came home"], TOKENIZER)
    state.save(path)
    assert path.stat().st_size < 4096
    again = TextState.load(path, model)
    assert (again.tokens, again.model) == ((8, 18), state.model)
    assert model.generate(state=again, **GREEDY).equal(model.generate(state=state, **GREEDY))


def test_states_fork_and_mix() -> None:
    model = network()
    a, b = (model.read(text, TOKENIZER) for text in ("On day 1", "the boat"))
    for weight, near in ((0.0, a), (1.0, b)):
        mixed = mix(a, b, weight)
        torch.testing.assert_close(mixed.liquid.neurons, near.liquid.neurons)
        assert mixed.last.equal(near.last)
    half = mix(a, b)
    torch.testing.assert_close(half.liquid.conv_state[0], (a.liquid.conv_state[0] + b.liquid.conv_state[0]) / 2)
    with pytest.raises(UsageError, match=r"weight.*2"):
        mix(a, b, 2.0)
    with pytest.raises(UsageError, match="models"):
        mix(a, network(seed=1).read("the", TOKENIZER))
    with pytest.raises(UsageError, match="1 and 2 "):
        mix(a, b.select([0, 0]))


def test_a_state_of_another_model_is_rejected(tmp_path: Path) -> None:
    model, other = network(), network(seed=1)
    state = model.read("On day", TOKENIZER)
    state.save(tmp_path / "s")
    with pytest.raises(ArtifactError, match="model") as error:
        TextState.load(tmp_path / "s", other)
    assert error.value.exit_code == 4
    for use in (lambda: other.generate(state=state, **GREEDY), lambda: other.read("x", TOKENIZER, state=state)):
        with pytest.raises(UsageError, match="model"):
            use()


def rewrite(path: Path, tensors: dict | None = None, **header: str) -> None:
    """The file with other tensors or header fields, and a checksum that fits."""
    with safe_open(path, framework="pt") as file:
        fields = file.metadata()
    content = load_file(path) | (tensors or {})
    save_file(content, path, metadata=fields | {"sha256": digest(content)} | header)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "file"),
        (lambda p: p.write_bytes(b""), "file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x7f"), "checksum"),
        (lambda p: save_file({"x": torch.zeros(1)}, p), "file"),
        (lambda p: p.unlink(), "file"),
        (lambda p: rewrite(p, format="2"), "format 2"),
        (lambda p: rewrite(p, tokens="many"), "'many'"),
        (lambda p: rewrite(p, {"last": torch.tensor([999])}), "vocabulary"),
        (lambda p: rewrite(p, {"last": torch.tensor([0, 1])}), "last"),
        (lambda p: rewrite(p, {"neurons.0": torch.zeros(1, 3)}), r"neurons\.0: expected torch\.float32 .* \(1, 3\)"),
        (lambda p: rewrite(p, {"neurons.0": torch.zeros(1, 12, dtype=torch.float16)}), r"got torch\.float16"),
        (lambda p: rewrite(p, {"neurons.7": torch.zeros(1, 12)}), r"neurons\.7: expected nothing"),
        (lambda p: rewrite(p, {"neurons.0": torch.full((1, 24), float("nan"))}), "not finite"),
    ],
)
def test_a_damaged_file_is_rejected_in_one_line(damage: object, message: str, tmp_path: Path) -> None:
    model, path = network(), tmp_path / "book.state"
    model.read("On day", TOKENIZER).save(path)
    damage(path)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message) as error:
        TextState.load(path, model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "tokenizer", "message"),
    [
        ("", TOKENIZER, r"got \(1, 0\)"),
        ("On", None, "tokenizer"),
        (torch.tensor([[999]]), None, "999"),
        (torch.tensor([3]), None, r"expected \(B, T\)"),
    ],
)
def test_what_cannot_be_read_is_rejected(text: object, tokenizer: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        network().read(text, tokenizer)


def test_reading_leaves_the_mode_alone_and_knows_no_dropout() -> None:
    model = network({**KINDS[1], "dropout": 0.5}).train()
    states = [model.read("On day 1", TOKENIZER).liquid.neurons[1] for _ in range(2)]
    assert states[0].equal(states[1])
    assert model.training
    assert model.dropout.training


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_generate_continues_from_a_state(engine: str) -> None:
    model, sampling = network(), SamplingConfig(max_tokens=12, seed=3, num_samples=2, ignore_eos=True)
    state = model.read(STORY[:90], TOKENIZER)
    for prompt in ("", "On"):
        whole = generate(model, TOKENIZER, STORY[:90] + prompt, sampling, engine=engine)
        after = generate(model, TOKENIZER, prompt, sampling, state=state, engine=engine)
        assert [sample.text for sample in after] == [sample.text for sample in whole]
    with pytest.raises(UsageError, match="one text.*2"):
        generate(model, TOKENIZER, "", sampling, state=state.select([0, 0]))


def test_broken_weights_are_named_in_generate() -> None:
    model = network()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    for mode in ({}, {"do_sample": True}, {"num_beams": 2}):
        with pytest.raises(LogitsError, match="sequence 0 "):
            model.generate(encode("On day"), **GREEDY | mode)


def test_padding_on_the_right_and_foreign_caches_are_rejected() -> None:
    from transformers import DynamicCache

    model, ids = network(), encode("On day")
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    with pytest.raises(UsageError, match="padding"):
        model.generate(ids, attention_mask=mask, **GREEDY)
    with pytest.raises(UsageError, match="LiquidCache.*DynamicCache"):
        model.generate(ids, past_key_values=DynamicCache(), **GREEDY)
    wrong = model.initial_state(1).map(lambda tensor: tensor.half())
    with pytest.raises(UsageError, match=r"torch\.float16"):
        model.advance(ids, wrong)


def test_the_command_reads_once_and_continues(run: Path, ltc: object, tmp_path: Path) -> None:
    kept, book = tmp_path / "book.state", tmp_path / "book.txt"
    book.write_text(STORY[:2000])
    how = ["-n", 40, "--temperature", 0]
    whole = ltc("generate", run, "--prompt-file", book, "--save-state", kept, *how)
    assert whole.code == 0
    assert "2,000 tokens" in whole.err
    assert ltc("generate", run, "--prompt-file", book, *how).out == whole.out
    assert STORY[:2000] + ltc("generate", run, "--state", kept, *how).out == whole.out
    asked = ltc("generate", run, "--state", kept, "--prompt", "On", *how)
    assert asked.out == ltc("generate", run, "--prompt", STORY[:2000] + "On", *how).out[2000:]
    kept.write_bytes(kept.read_bytes()[:-1])
    broken = ltc("generate", run, "--state", kept)
    assert (broken.code, broken.out) == (4, "")
    assert "book.state" in broken.error
    loaded = load_run(run)
    assert loaded.model.read("On day").tokens == (6,)


def test_the_examples_of_the_guide_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = Path(__file__).parents[2] / "docs" / "states.md"
    examples = [part.split("```")[0] for part in guide.read_text().split("```python\n")[1:]]
    assert len(examples) == 2
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "book").symlink_to(run)
    (tmp_path / "book.txt").write_text(STORY)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in examples:
        exec(compile(example, guide.name, "exec"), names)
    assert names["ids"].shape == (2, 20)
    assert f"{len(STORY):,} tokens read" in capsys.readouterr().out
