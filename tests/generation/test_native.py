import math
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
import torch
from native_models import VOCABULARY, ids_of, make_model

from ltc_textgen.config import ModelConfig, SamplingConfig, Solver
from ltc_textgen.data.train_tokenizer import character_tokenizer
from ltc_textgen.errors import UsageError
from ltc_textgen.generation import LogitsError, generate, generate_stream, native
from ltc_textgen.generation.engines import NativeEngine, Request, TorchEngine, open_engine
from ltc_textgen.generation.native import NativeDecoder, weights_of, why_not
from ltc_textgen.generation.sampling import UniformStreams, draw, shape_logits
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.kernels import decoder as binding
from ltc_textgen.kernels import dispatch, library
from ltc_textgen.kernels.decoder import Decoder, Weights
from ltc_textgen.kernels.decoder_rows import Choice
from ltc_textgen.model.state import LiquidState
from ltc_textgen.solvers import Method

pytestmark = pytest.mark.skipif(library.LIBRARY is None, reason="no library")


def expected(model: LiquidTimeConstantNetwork, ids: torch.Tensor, state: LiquidState | None = None, **more: object):
    with torch.no_grad():
        output = model(ids, state=state, **more)
    return output.logits, output.state


def close(ours: LiquidState, theirs: LiquidState, tolerance: float = 1e-5) -> None:
    for a, b in zip(ours.tensors().values(), theirs.tensors().values(), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(binding, "BUSY", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "more",
    [
        *({"solver": solver, "steps": steps} for solver in Solver for steps in (1, 3)),
        {"adaptive": False},
        {"contractive": True},
        {"conv_width": 1},
        {"conv_width": 7, "num_layers": 3},
        {"tie_embeddings": True, "expansion": 1.0},
        {"hidden_size": 37, "expansion": 1.6},
        {"hidden_size": 5, "expansion": 0.2, "num_layers": 1},
        {"learned_initial_state": True},
    ],
    ids=str,
)
def test_logits_and_state_are_those_of_the_model(more: dict[str, object]) -> None:
    model = make_model(**more)
    native = NativeDecoder(model)
    for batch in (1, 2, 3, 17):
        ids = ids_of(batch, 9)
        logits, state = native.logits(ids)
        theirs, their_state = expected(model, ids)
        torch.testing.assert_close(logits, theirs, atol=2e-5, rtol=0)
        close(state, their_state)
        again, after = native.logits(ids[:, :5], state, elapsed=0.3)
        theirs, their_state = expected(model, ids[:, :5], their_state, elapsed=0.3)
        torch.testing.assert_close(again, theirs, atol=2e-5, rtol=0)
        close(after, their_state)
        close(native.read(ids), state, tolerance=1e-6)


@pytest.mark.parametrize("name", ["avx512vnni", "avx512", "avx2", "baseline"])
@pytest.mark.parametrize("int8", [False, True])
def test_every_instruction_set_computes_the_same(name: str, int8: bool) -> None:
    best = library.instruction_set()
    model, ids = make_model(hidden_size=40), ids_of(11, 6)
    reference, _ = NativeDecoder(model, int8=int8).logits(ids)
    if not library.use_instruction_set(name):
        pytest.skip("not on this CPU")
    try:
        native = NativeDecoder(model, int8=int8)
    finally:
        library.use_instruction_set(best)
    torch.testing.assert_close(native.logits(ids)[0], reference, atol=2e-3 if int8 else 2e-5, rtol=0)


def test_dot_products_of_bytes_are_exact() -> None:
    best, model, ids, found = library.instruction_set(), make_model(hidden_size=40), ids_of(11, 6), []
    try:
        for name in ("avx512vnni", "avx512"):
            if not library.use_instruction_set(name):
                pytest.skip("not on this CPU")
            found.append(NativeDecoder(model, int8=True).logits(ids)[0])
    finally:
        library.use_instruction_set(best)
    assert torch.equal(*found)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_threads_give_the_same_numbers(batch: int, two_threads: None) -> None:
    model, ids = make_model(hidden_size=64), ids_of(batch, 12)
    native = NativeDecoder(model)
    theirs, state = expected(model, ids)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        logits, after = native.logits(ids)
        torch.testing.assert_close(logits, theirs, atol=2e-5, rtol=0)
        close(after, state)
    # Inside a text, from one thread that continues alone to a team.
    native.core._alone = 5
    logits, after = native.logits(ids)
    torch.testing.assert_close(logits, theirs, atol=2e-5, rtol=0)
    close(after, state)


def test_ten_thousand_chained_tokens() -> None:
    model = make_model()
    native = NativeDecoder(model)
    ids = ids_of(1, 10_000)
    whole, state = expected(model, ids)
    one_by_one, after = native.logits(ids)
    assert float((whole - one_by_one).abs().max()) < 1e-4
    close(after, state, tolerance=1e-4)


OPTIONS = [
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=0, repetition_penalty=1.3, ignore_eos=True),
    SamplingConfig(temperature=1.2, seed=3),
    SamplingConfig(temperature=0.7, seed=4, top_k=5, repetition_penalty=1.1),
    SamplingConfig(temperature=1.0, seed=5, top_p=0.9, ignore_eos=True),
    SamplingConfig(temperature=1.5, seed=6, min_p=0.05, top_p=0.95, top_k=30),
]


def take(engine: TorchEngine | NativeEngine, count: int) -> torch.Tensor:
    """Tokens of all samples, whatever ends them."""
    taken: list[torch.Tensor] = []
    while sum(part.shape[1] for part in taken) < count:
        taken.append(engine.draw())
    return torch.cat(taken, dim=1)[:, :count]


def pass_over(engine: NativeEngine, count: int) -> None:
    """As `take`, but keep nothing: the text itself grows."""
    while count > 0:
        count -= engine.draw().shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", OPTIONS, ids=str)
def test_it_writes_what_the_reference_writes(sampling: SamplingConfig) -> None:
    model, count, prompt, seed = make_model(), 500, [1, 2, 3], sampling.seed or 0
    with torch.no_grad():
        model.lm_head.projection.bias[0] = -1e4  # no sample ends
    sampling = sampling.model_copy(update={"max_tokens": count, "num_samples": 2})
    native = open_engine(model, Request(prompt, sampling, seed, 0))
    assert isinstance(native, NativeEngine)
    ours = take(native, count)
    # The reference at every token, given the tokens before it.
    ids = torch.cat([torch.tensor([prompt, prompt]), ours], dim=1)
    logits, _ = expected(model, ids)
    seen = (
        torch.nn.functional.one_hot(ids, VOCABULARY).cummax(1).values.bool()
        if sampling.repetition_penalty != 1
        else None
    )
    uniform = UniformStreams(seed, range(2)).ahead(count)
    for row in range(2):
        here = slice(len(prompt) - 1, -1)
        shaped = shape_logits(logits[row, here], sampling, None if seen is None else seen[row, here], 0)
        theirs = draw(shaped, uniform[row]) if sampling.temperature else shaped.argmax(1)
        assert torch.equal(ours[row], theirs)
    # And the reference as it runs.
    reference = open_engine(model, Request(prompt, sampling, seed, 0), "torch")
    assert isinstance(reference, TorchEngine)
    assert torch.equal(ours[:, :20], take(reference, 20))
    if sampling.temperature:
        assert len(set(ours[0].tolist())) > 4, "a text of few tokens proves little"


@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_draws_are_those_of_the_reference(top_k: int, top_p: float, min_p: float, penalty: float) -> None:
    vocabulary, batch = 301, 64
    model = make_model(hidden_size=8, num_layers=1, vocabulary=vocabulary)
    with torch.no_grad():
        model.lm_head.projection.weight[50:] = 0.0  # many equal logits
        model.lm_head.projection.bias[50:60] = 1.5
        model.lm_head.projection.bias[60:] = -1.0
    native = NativeDecoder(model)
    ids = ids_of(batch, 1, vocabulary=vocabulary)
    seen = torch.rand(batch, vocabulary, generator=torch.Generator().manual_seed(1)) < 0.3
    sampling = SamplingConfig(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    logits = native.logits(ids)[0][:, 0]
    shaped = shape_logits(logits, sampling, seen if penalty != 1 else None)
    choice = Choice(0.8, top_k, top_p, min_p, penalty)
    uniform = torch.rand(batch, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    uniform[:2, 0] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    added = seen.clone()
    drawn, _ = native.draw(ids, None, choice, 1, uniform, added)
    assert torch.equal(drawn.tokens[:, 0], draw(shaped, uniform[:, 0]))
    assert penalty == 1 or bool(added.gather(1, drawn.tokens).all())
    assert torch.equal(added & ~seen, torch.zeros_like(seen).scatter(1, drawn.tokens, penalty != 1) & ~seen)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    model = make_model()
    native = NativeDecoder(model)
    uniform = torch.stack([UniformStreams(7, range(i, i + 1)).ahead(50)[0] for i in range(33)])
    ids = ids_of(33, 1)
    together, _ = native.draw(ids, None, Choice(1.1), 50, uniform)
    for row in (0, 3, 32):
        alone, _ = native.draw(ids[row : row + 1], None, Choice(1.1), 50, uniform[row : row + 1])
        assert torch.equal(alone.tokens[0], together.tokens[row])


def test_weights_of_eight_bits_are_rounded_weights() -> None:
    model = make_model(hidden_size=48)
    ids = ids_of(5, 30)
    exact, _ = expected(model, ids)
    native = NativeDecoder(model, int8=True)
    logits, _ = native.logits(ids)
    embedding = model.embed_tokens.weight.clone()
    with torch.no_grad():
        matrices = [model.lm_head.projection.weight]
        for layer in model.layers:
            matrices += [layer.cell.input.weight, layer.gate.weight, layer.out.weight]
        for matrix in matrices:
            scale = matrix.abs().amax(1, keepdim=True) / 127
            matrix.copy_((matrix / scale).round() * scale)
        assert torch.equal(model.embed_tokens.weight, embedding)
    rounded, _ = expected(model, ids)
    assert float((rounded - exact).abs().max()) > 5e-3
    torch.testing.assert_close(logits, rounded, atol=2e-3, rtol=0)
    assert native.core.weight_bytes * 4 == NativeDecoder(model).core.weight_bytes


def test_no_time_leaves_the_neurons_as_they_are() -> None:
    native = NativeDecoder(make_model())
    state = native.read(ids_of(2, 5))
    before = state.map(torch.clone)
    after = native.read(ids_of(2, 5, seed=1), state, elapsed=0.0)
    assert all(torch.equal(a, b) for a, b in zip(after.neurons, before.neurons, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state.conv_state, before.conv_state, strict=True)), (
        "the input is left alone"
    )
    assert not torch.equal(after.conv_state[0], before.conv_state[0])


def test_what_does_not_fit_is_rejected_by_name() -> None:
    model = make_model()
    native = NativeDecoder(model)
    one, uniform = ids_of(1, 1), torch.zeros(1, 3, dtype=torch.float64)
    for bad in (-1, VOCABULARY):
        with pytest.raises(UsageError, match=f"ids: expected 0 to {VOCABULARY - 1}, got {bad}"):
            native.read(torch.tensor([[1, bad]]))
    with pytest.raises(UsageError, match=r"ids: expected \(B, T\) torch.int64"):
        native.read(one.int())
    with pytest.raises(UsageError, match=r"ids: expected \(B, T\)"):
        native.read(one[:, :0])
    with pytest.raises(UsageError, match="state: expected neurons"):
        native.read(one, native.initial_state(2))
    with pytest.raises(UsageError, match="state: expected neurons"):
        native.read(one, NativeDecoder(make_model(num_layers=3)).initial_state(1))
    with pytest.raises(UsageError, match=r"neurons: expected .* torch.float32"):
        native.read(one, native.initial_state(1).map(lambda tensor: tensor.double()))
    with pytest.raises(UsageError, match="elapsed"):
        native.read(one, elapsed=math.nan)
    with pytest.raises(UsageError, match="uniform: expected 3 numbers"):
        native.draw(one, None, Choice(), 3)
    with pytest.raises(UsageError, match=r"uniform: expected \(1, 4\)"):
        native.draw(one, None, Choice(), 4, uniform)
    with pytest.raises(UsageError, match=r"in \[0, 1\)"):
        native.draw(one, None, Choice(), 3, uniform + 1)
    with pytest.raises(UsageError, match="count"):
        native.draw(one, None, Choice(0.0), 0)
    with pytest.raises(UsageError, match="seen"):
        native.draw(one, None, Choice(repetition_penalty=2.0), 3, uniform)
    bad_values = {"temperature": -1.0, "top_p": 0.0, "min_p": 2.0, "top_k": -1, "forbidden": (99,)}
    for name, value in bad_values.items():
        with pytest.raises(UsageError, match=name):
            native.draw(one, None, Choice(**{name: value}), 3, uniform)
    more_out = NativeDecoder(make_model(output_size=VOCABULARY + 1))
    with pytest.raises(UsageError, match=rf"{VOCABULARY} .*{VOCABULARY + 1} "):
        more_out.draw(one, None, Choice(0.0), 1)
    with pytest.raises(UsageError, match="blocks"):
        Decoder(native_weights(model, blocks=()), Method(1, Solver.explicit, True), step_size=1.0)
    with pytest.raises(UsageError, match="head: expected"):
        Decoder(
            native_weights(model, head=model.lm_head.projection.weight.double()),
            Method(1, Solver.explicit, True),
            step_size=1.0,
        )


def native_weights(model: LiquidTimeConstantNetwork, **changes: object) -> Weights:
    return replace(weights_of(model), **changes)


def test_broken_weights_are_named_after_what_could_still_be_written() -> None:
    chars = character_tokenizer("abcdefgh")
    model = make_model(vocabulary=chars.vocab_size)
    with torch.no_grad():
        model.embed_tokens.weight[chars.encode("c")] = math.nan
        model.lm_head.projection.bias[chars.eos_token_id] = -1e4
    written: list[str] = []
    stream = generate_stream(model, chars, "ab", SamplingConfig(max_tokens=10_000, seed=0), engine="native")
    with pytest.raises(LogitsError, match="sample 0 "):
        written.extend(piece.text for piece in stream)
    assert written[-1] == "c"
    assert "c" not in written[:-1]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"block": "plain"}, "block = liquid"),
        ({"coupling": "full"}, "coupling = diagonal"),
        ({"head": "adaptive"}, "head = full"),
    ],
)
def test_other_models_are_rejected_and_generated_by_pytorch(more: dict[str, object], reason: str) -> None:
    model = make_model(**more)
    assert reason in why_not(model)
    with pytest.raises(UsageError, match=reason):
        NativeDecoder(model)
    sampling = SamplingConfig(max_tokens=3, temperature=0)
    assert isinstance(open_engine(model, Request([1], sampling, 0, 0)), TorchEngine)
    with pytest.raises(UsageError, match=reason):
        open_engine(model, Request([1], sampling, 0, 0), "int8")


def test_changed_models_are_rejected() -> None:
    class Same(LiquidTimeConstantNetwork):
        pass

    class Other(LiquidTimeConstantNetwork):
        def _embed(self, input_ids):
            return 2 * super()._embed(input_ids)

    settings = ModelConfig(input_size=9, hidden_size=8, coupling="diagonal", block="liquid")
    assert not why_not(Same.from_settings(settings))
    assert why_not(Other.from_settings(settings))
    model = make_model()
    assert not why_not(model)
    with dispatch.use("reference"):
        assert "kernels" in why_not(model)
    assert "float64" in why_not(make_model().double())
    model.layers[1].register_forward_hook(lambda *_: None)
    assert "hook" in why_not(model)
    model = make_model()
    model.layers[0].gate = torch.nn.Sequential(model.layers[0].gate)
    assert "Sequential" in why_not(model)


def test_a_model_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setattr(
        native, "weights_of", lambda of: native_weights(of, head=2 * of.lm_head.projection.weight.detach())
    )
    assert not why_not(model)
    with pytest.raises(UsageError):
        NativeDecoder(model)
    assert isinstance(open_engine(model, Request([1], SamplingConfig(), 0, 0)), TorchEngine)


def test_a_state_goes_before_the_prompt() -> None:
    chars = character_tokenizer("abcdefgh")
    model = make_model(vocabulary=chars.vocab_size)
    sampling = SamplingConfig(max_tokens=30, temperature=0, ignore_eos=True)
    long = "abcdefgh" * 6
    for prompt in ("ha", long):
        [whole] = generate(model, chars, "bad" + prompt, sampling)
        state = model.read("bad", chars)
        for engine in ("native", "torch"):
            [continued] = generate(model, chars, prompt, sampling, state=state, engine=engine)
            assert continued.text == whole.text
    with pytest.raises(UsageError, match="state: "):
        generate(model, chars, "a", sampling, state=state.select([0, 0]))
    with pytest.raises(UsageError, match="state: "):
        generate(make_model(seed=1, vocabulary=chars.vocab_size), chars, "a", sampling, state=state)
    with pytest.raises(UsageError, match="state: expected neurons"):
        open_engine(model, Request([1], sampling, 0, 0, NativeDecoder(model).initial_state(2)), "native")


def test_memory_does_not_grow_with_the_text() -> None:
    sampling = SamplingConfig(max_tokens=60_000, seed=0, repetition_penalty=1.1)
    engine = NativeEngine(NativeDecoder(make_model()), Request([1], sampling, 0, 0))
    pass_over(engine, 5_000)
    before = psutil.Process().memory_info().rss
    pass_over(engine, 50_000)
    assert psutil.Process().memory_info().rss - before < 1_000_000
