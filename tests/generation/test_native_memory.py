"""The n-gram memory inside the decoder's call: what PyTorch's engine computes with it, in any batch and any split."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from native_models import VOCABULARY, ids_of, make_model

from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.generation.engines import NativeEngine, Request, TorchEngine
from ltc_textgen.generation.native import NativeDecoder
from ltc_textgen.kernels import library
from ltc_textgen.kernels.decoder_rows import Choice, Work
from ltc_textgen.memory import Mixture, NgramMemory

pytestmark = pytest.mark.skipif(library.LIBRARY is None, reason="no library")
EOS = 3


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    rng = np.random.default_rng(0)
    found = Mixture.start(NgramMemory(VOCABULARY, 6, EOS))
    words = [rng.integers(0, VOCABULARY, 7) for _ in range(30)]
    found.memory.learn(np.concatenate([words[i] for i in rng.integers(0, 30, 400)]))
    found.weights[:] += rng.normal(0, 0.05, found.weights.shape).astype(np.float32)
    return found


def log_probs(mixture: Mixture, decoder: NativeDecoder, ids: np.ndarray) -> np.ndarray:
    """The mixture's log-probabilities after each token, by network and memory apart, (T, V)."""
    logits = decoder.logits(torch.from_numpy(ids)[None])[0][0].numpy()
    contexts = [mixture.contexts_of(ids[: t + 1].tolist()) for t in range(len(ids))]
    return mixture.apply(logits, np.concatenate(contexts))


@pytest.mark.parametrize("cuts", [(1,), (5, 6, 20), (16,), range(1, 29)])
def test_log_probabilities_do_not_depend_on_how_a_text_is_cut(mixture: Mixture, cuts: Sequence[int]) -> None:
    decoder, text = NativeDecoder(make_model()), ids_of(1, 30)[0].numpy()
    text[8] = EOS
    expected = log_probs(mixture, decoder, text[:-1])

    def scored(*bounds: int) -> np.ndarray:
        rows, (slot,) = decoder.rows(decoder.initial_state(1), Choice())
        rows.mix(slot, mixture.native(), mixture.contexts_of([])[0])
        work = [
            Work(slot, text[begin:end], logprobs=True, targets=text[begin + 1 : end + 1])
            for begin, end in pairwise(bounds)
        ]
        return np.concatenate([rows.run([one])[0].logprobs for one in work])

    np.testing.assert_allclose(scored(0, 29), expected[np.arange(29), text[1:]], rtol=1e-6)
    np.testing.assert_array_equal(scored(0, *cuts, 29), scored(0, 29))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("prompt", [1, 4, 40])
def test_it_draws_what_the_torch_engine_draws(mixture: Mixture, temperature: float, prompt: int) -> None:
    model, ids = make_model(), ids_of(1, prompt)[0].tolist()
    sampling = SamplingConfig(temperature=temperature, num_samples=3, max_tokens=20, ignore_eos=True)
    request = Request(ids, sampling, 5, EOS, memory=mixture)
    engines = NativeEngine(NativeDecoder(model), request), TorchEngine(model, request)
    texts = []
    for engine in engines:
        parts: list[torch.Tensor] = []
        while sum(part.shape[1] for part in parts) < 20:
            parts.append(engine.draw())
        texts.append(torch.cat(parts, 1)[:, :20])
    assert torch.equal(*texts)


def test_a_row_with_a_memory_has_the_same_bits_beside_others(mixture: Mixture) -> None:
    decoder, ids = NativeDecoder(make_model()), ids_of(9, 4).numpy()
    uniform = np.random.default_rng(1).random((9, 12))

    def drawn(which: list[int]) -> list[tuple[list[int], bytes]]:
        rows, slots = decoder.rows(decoder.initial_state(len(which)), Choice(0.8))
        for slot, row in zip(slots, which, strict=True):
            if row % 3 != 2:  # the others are the network alone
                rows.mix(slot, mixture.with_share(1 - row / 20).native(), mixture.contexts_of([])[0])
        work = [Work(s, ids[r], 12, uniform[r], logprobs=True) for s, r in zip(slots, which, strict=True)]
        return [(one.tokens.tolist(), one.logprobs.tobytes()) for one in rows.run(work)]

    together = drawn(list(range(9)))
    assert together == [drawn([row])[0] for row in range(9)]
    assert together[0] != drawn([2])[0]


def test_no_memory_any_more_is_the_network_alone(mixture: Mixture) -> None:
    decoder, text = NativeDecoder(make_model()), ids_of(1, 6)[0].numpy()

    def scored(*mixing: object) -> bytes:
        rows, (slot,) = decoder.rows(decoder.initial_state(1), Choice())
        for one in mixing:
            rows.mix(slot, one, mixture.contexts_of([])[0])
        return rows.run([Work(slot, text[:-1], logprobs=True, targets=text[1:])])[0].logprobs.tobytes()

    assert scored() == scored(mixture.native(), None) != scored(mixture.native())


@pytest.mark.parametrize("context", [None, np.zeros(3, np.uint32), np.full(16, 16, np.uint32)])
def test_a_context_that_is_none_is_rejected(mixture: Mixture, context: np.ndarray | None) -> None:
    rows, (slot,) = NativeDecoder(make_model()).rows(NativeDecoder(make_model()).initial_state(1), Choice())
    with pytest.raises(UsageError):
        rows.mix(slot, mixture.native(), context)
