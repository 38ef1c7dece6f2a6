"""Rows of the native decoder: their options, joining and leaving, log-probabilities, neurons watched and held."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from native_models import VOCABULARY, ids_of, make_model

from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.generation.native import NativeDecoder, stacked, weights_of
from ltc_textgen.generation.sampling import draw, shape_logits
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.kernels import library
from ltc_textgen.kernels.decoder_rows import Choice, Hold, Rows, Work, Written

pytestmark = pytest.mark.skipif(library.LIBRARY is None, reason="no library")

CHOICES = [
    Choice(0.0),
    Choice(1.3),
    Choice(0.9, top_k=5, repetition_penalty=1.3),
    Choice(1.1, top_p=0.8, presence_penalty=0.7),
    Choice(1.4, min_p=0.05, frequency_penalty=-0.4, logit_bias={3: 2.0, 7: -5.0}),
    Choice(1.0, forbidden=(1, 2, 3), stops=(5, 9, 11, 13, 17, 21, 40)),
    Choice(0.0, frequency_penalty=1.5),
    Choice(0.7, top_k=12, top_p=0.9, min_p=0.01, stops=(30,)),
]


def numbers(row: int, count: int, skip: int = 0) -> np.ndarray:
    """Uniform numbers of a row's own."""
    return np.random.default_rng(row).random(skip + count)[skip:]


def start(rows: Rows, native: NativeDecoder, choice: Choice, **more: object) -> int:
    """A row at the beginning of a text."""
    neurons, columns = stacked(native.initial_state(1))
    return rows.join(choice, neurons[:, 0], columns[:, 0], **more)


def alone(native: NativeDecoder, choice: Choice, prompt: list[int], row: int, count: int) -> tuple[Written, tuple]:
    """What a row writes without others, and its state."""
    rows = Rows(native.core, 1)
    slot = start(rows, native, choice, seen=prompt)
    [written] = rows.run([Work(slot, prompt, count, numbers(row, count), logprobs=True)], best=3)
    return written, rows.state(slot)


def same(a: tuple, b: tuple) -> bool:
    """Whether two states have the same bits."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("int8", [False, True])
def test_rows_join_and_leave_and_each_writes_what_it_writes_alone(int8: bool) -> None:
    native = NativeDecoder(make_model(), int8=int8)
    prompts = [ids_of(1, 1 + 3 * row, seed=row)[0].tolist() for row in range(len(CHOICES))]
    expected = [alone(native, choice, prompts[row], row, 30) for row, choice in enumerate(CHOICES)]
    rows = Rows(native.core, 5)
    waiting, slots, parts, last = list(range(len(CHOICES))), {}, {row: [] for row in range(len(CHOICES))}, {}
    while waiting or slots:
        while waiting and rows.free:
            row = waiting.pop()
            slots[row] = start(rows, native, CHOICES[row], seen=prompts[row])
            last[row] = prompts[row]
        work = []
        for row, slot in slots.items():
            have = sum(len(part) for part in parts[row])
            count = min(4 + row, 30 - have)
            work.append(Work(slot, last[row], count, numbers(row, count, have), logprobs=row % 2 == 0))
        for row, written in zip(list(slots), rows.run(work, best=3), strict=True):
            parts[row].append(written.tokens)
            last[row] = written.tokens[-1:]
            whole, state = expected[row]
            have = sum(len(part) for part in parts[row])
            if row % 2 == 0:
                ours = written.logprobs[-len(written.tokens) :]
                begin = len(prompts[row]) - 1 + have - len(ours)
                assert np.array_equal(ours, whole.logprobs[begin : begin + len(ours)])
            if written.end == "stop" or have == 30:
                assert np.array_equal(np.concatenate(parts[row]), whole.tokens)
                assert written.end == whole.end
                assert same(rows.state(slots[row]), state)
                rows.leave(slots.pop(row))
    assert rows.free == 5
    assert [written.end for written, _ in expected].count("stop") >= 1


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_options_are_those_of_the_reference(choice: Choice) -> None:
    native, prompt, count = NativeDecoder(make_model()), [4, 8, 15], 200
    written, _ = alone(native, replace(choice, stops=()), prompt, 1, count)
    text = torch.tensor([prompt + written.tokens.tolist()])
    logits = native.logits(text)[0][0, len(prompt) - 1 : -1].clone()
    sampling = SamplingConfig(
        temperature=choice.temperature, top_k=choice.top_k, top_p=choice.top_p, min_p=choice.min_p,
        repetition_penalty=choice.repetition_penalty,
    )  # fmt: skip
    uniform, seen, counts = numbers(1, count), torch.zeros(VOCABULARY, dtype=torch.bool), torch.zeros(VOCABULARY)
    seen[prompt] = True
    for i, token in enumerate(written.tokens.tolist()):
        here = logits[i].clone()
        for biased, bias in choice.logit_bias.items():
            here[biased] += bias
        here[list(choice.forbidden)] = -math.inf
        penalized = sampling.repetition_penalty != 1
        if penalized:
            here = torch.where(seen, torch.where(here < 0, here * 1.3, here / 1.3), here)
        here = here - choice.frequency_penalty * counts - choice.presence_penalty * (counts > 0)
        shaped = shape_logits(here[None], sampling.model_copy(update={"repetition_penalty": 1.0}))
        theirs = shaped.argmax() if sampling.greedy else draw(shaped, torch.tensor([uniform[i]]))[0]
        assert token == int(theirs), i
        seen[token] = True
        counts[token] += 1
    assert len(set(written.tokens.tolist())) > 3


def test_a_stop_ends_its_row_and_the_others_continue() -> None:
    native, ids = NativeDecoder(make_model()), ids_of(3, 4)
    whole = [alone(native, Choice(), ids[row].tolist(), row, 60)[0].tokens for row in range(3)]
    stop = int(whole[1][20])
    first = whole[1].tolist().index(stop) + 1
    rows = Rows(native.core, 3)
    slots = [start(rows, native, Choice(stops=(stop,) if row == 1 else ())) for row in range(3)]
    written = rows.run([Work(slots[row], ids[row].tolist(), 60, numbers(row, 60)) for row in range(3)])
    assert [one.end for one in written] == ["count", "stop", "count"]
    for row in (0, 2):
        assert np.array_equal(written[row].tokens, whole[row])
    assert np.array_equal(written[1].tokens, whole[1][:first])
    _, state = alone(native, Choice(), ids[1].tolist(), 1, first)
    assert same(rows.state(slots[1]), state)


@pytest.mark.parametrize("int8", [False, True])
def test_a_text_has_the_same_bits_however_it_is_split_and_beside_rows_that_write(int8: bool) -> None:
    native, text = NativeDecoder(make_model(), int8=int8), ids_of(1, 150)[0].tolist()
    rows = Rows(native.core, 8)
    slot = start(rows, native, Choice())
    targets = [*text[1:], -1]
    [whole] = rows.run([Work(slot, text, logprobs=True, targets=targets, logits=True)], best=2)
    state = rows.state(slot)
    expected = alone(native, Choice(), [1], 5, 90)[0].tokens
    for pieces in ([1, 149], [70, 3, 77], [64, 64, 22], [1] * 150):
        beside = [start(rows, native, Choice()) for _ in range(6 if len(pieces) < 9 else 1)]
        reader, at, parts = start(rows, native, Choice()), 0, []
        drawn = {other: [1] for other in beside}
        for piece in pieces:
            end = at + piece
            reading = Work(reader, text[at:end], logprobs=True, targets=targets[at:end], logits=True)
            writing = []
            for other in beside:
                have = len(drawn[other]) - 1
                count = min(90 - have, 30)
                if count:
                    writing.append(Work(other, drawn[other][-1:], count, numbers(5, count, have)))
            [one, *others] = rows.run([reading, *writing], best=2)
            for work, written in zip(writing, others, strict=True):
                drawn[work.slot] += written.tokens.tolist()
            parts.append(one)
            at = end
        assert np.array_equal(np.concatenate([one.logits for one in parts]), whole.logits)
        assert np.array_equal(np.concatenate([one.logprobs for one in parts]), whole.logprobs, equal_nan=True)
        assert same(rows.state(reader), state)
        if len(pieces) > 2:
            assert all(tokens[1:] == expected.tolist() for tokens in drawn.values())
        for other in (*beside, reader):
            rows.leave(other)


def test_log_probabilities_are_the_models_own_and_the_likeliest_are_in_order() -> None:
    model = make_model(vocabulary=301)
    native = NativeDecoder(model)
    text = ids_of(1, 20, vocabulary=301)[0].tolist()
    rows = Rows(native.core, 2)
    slot = start(rows, native, Choice(0.5, top_k=9, logit_bias={5: 9.0}, frequency_penalty=1.0))
    other = start(rows, native, Choice())
    work = [
        Work(slot, text, 40, numbers(0, 40), logprobs=True, targets=[*text[1:], -1]),
        Work(other, text, logprobs=False),
    ]
    [written, silent] = rows.run(work, best=20)
    assert silent.logprobs is None
    assert silent.likeliest is None
    following = [*text[1:], *written.tokens.tolist()]
    logits, _ = native.logits(torch.tensor([[text[0], *following[:-1]]]))
    exact = logits[0].double().log_softmax(1)
    ours = torch.from_numpy(written.logprobs).double()
    torch.testing.assert_close(ours, exact[range(len(following)), following], atol=1e-5, rtol=0)
    best = exact.topk(20, dim=1)
    assert np.array_equal(written.likeliest, best.indices.numpy())
    torch.testing.assert_close(torch.from_numpy(written.likeliest_logprobs).double(), best.values, atol=1e-5, rtol=0)
    assert len(written.logprobs) == 19 + 40


def test_lists_of_likeliest_are_as_long_as_the_vocabulary_at_most_and_break_ties_by_id() -> None:
    model = make_model(vocabulary=7)
    with torch.no_grad():
        model.lm_head.projection.weight.zero_()
        model.lm_head.projection.bias.copy_(torch.tensor([0.0, 1.0, 1.0, 2.0, 0.0, 1.0, -1.0]))
    native = NativeDecoder(model)
    rows = Rows(native.core, 1)
    [written] = rows.run([Work(start(rows, native, Choice(0.0)), [1], 2, logprobs=True)], best=20)
    assert written.likeliest.tolist() == [[3, 1, 2, 5, 0, 4, 6]] * 2


@pytest.mark.parametrize("more", [{}, {"solver": "exponential", "steps": 3}, {"adaptive": False}], ids=str)
def test_watched_neurons_have_the_time_constants_of_the_model(more: dict[str, object]) -> None:
    model = make_model(hidden_size=20, expansion=1.5, **more)
    native, prompt = NativeDecoder(model), [3, 1, 4, 1, 5, 9, 2, 6]
    rows, neurons = Rows(native.core, 1), [(0, 0), (1, 29), (0, 7), (1, 8)]
    slot = start(rows, native, Choice())
    rows.watch(slot, neurons)
    [written] = rows.run([Work(slot, prompt, 12, numbers(0, 12))])
    text = torch.tensor([prompt + written.tokens.tolist()[:-1]])
    with torch.no_grad():
        constants = model.time_constants(text)
    states = [native.read(text[:, : t + 1]) for t in range(text.shape[1])]
    assert written.watched.shape == (text.shape[1], 4, 2)
    for i, (layer, neuron) in enumerate(neurons):
        expected = constants[layer][0, :, neuron]
        torch.testing.assert_close(torch.from_numpy(written.watched[:, i, 0]), expected, rtol=1e-5, atol=0)
        assert written.watched[:, i, 1].tolist() == [float(state.neurons[layer][0, neuron]) for state in states]


def test_watching_and_holding_a_neuron_at_its_own_value_changes_no_bit() -> None:
    native, text = NativeDecoder(make_model()), ids_of(1, 25)[0].tolist()
    rows = Rows(native.core, 2)
    free, kept = start(rows, native, Choice()), start(rows, native, Choice())
    rows.watch(free, [(0, 3), (1, 10)])
    for token in text:
        [one, *_] = rows.run([Work(free, [token])])
        (_, first), (_, second) = one.watched[0].tolist()
        rows.hold(kept, [Hold(0, 3, first), Hold(1, 10, second)])
        rows.run([Work(kept, [token])])
        assert same(rows.state(kept), rows.state(free))


def test_a_held_neuron_stays_and_what_depends_on_it_changes() -> None:
    native, text = NativeDecoder(make_model()), ids_of(1, 25)[0].tolist()
    rows = Rows(native.core, 3)
    slots = [start(rows, native, Choice()) for _ in range(3)]
    rows.hold(slots[1], [Hold(0, 3, 1.5)])
    rows.watch(slots[1], [(0, 3)])
    written = rows.run([Work(slot, text, logits=True) for slot in slots])
    assert (written[1].watched[:, 0, 1] == 1.5).all()
    first, second = rows.state(slots[0])[0], rows.state(slots[1])[0]
    changed = (first != second).nonzero().tolist()
    assert changed[0] == [0, 3]
    assert [layer for layer, _ in changed].count(0) == 1, "neurons of a diagonal layer do not see each other"
    assert len(changed) > 10
    assert np.array_equal(written[0].logits, written[2].logits)
    rows.hold(slots[1], [])
    [free] = rows.run([Work(slots[1], text)])
    assert (free.watched[:, 0, 1] != 1.5).all()


def test_a_scaled_time_constant_is_that_of_a_model_with_more_capacitance() -> None:
    native, text = NativeDecoder(make_model()), ids_of(1, 25)[0].tolist()
    rows = Rows(native.core, 1)
    slot = start(rows, native, Choice())
    rows.hold(slot, [Hold(1, 10, factor=3.0)])
    [written] = rows.run([Work(slot, text, logits=True)])
    model = make_model()
    with torch.no_grad():
        own = model.layers[1].cell.capacitance
        log = dict(model.layers[1].cell.named_parameters())["log_capacitance"]
        log[10] += math.log(3.0)
        torch.testing.assert_close(model.layers[1].cell.capacitance[10], 3 * own[10])
    expected = NativeDecoder(model).logits(torch.tensor([text]))[0][0]
    torch.testing.assert_close(torch.from_numpy(written.logits), expected, atol=1e-5, rtol=0)


def test_broken_logits_end_their_row_only() -> None:
    model = make_model()
    with torch.no_grad():
        model.embed_tokens.weight[7] = math.nan
    native = NativeDecoder(LiquidTimeConstantNetwork(model.config).eval())
    native.core = native._pack(weights_of(model), int8=False)
    rows = Rows(native.core, 2)
    slots = [start(rows, native, Choice(1.0, logit_bias={7: 2.0})), start(rows, native, Choice(1.0, forbidden=(7,)))]
    written = rows.run([Work(slot, [1], 100, numbers(0, 100), logprobs=True) for slot in slots])
    assert written[0].end == "broken"
    assert written[0].tokens[-1] == 7
    assert np.isfinite(written[0].logprobs).all()
    assert written[1].end == "count"
    assert len(written[1].tokens) == 100


def test_what_does_not_fit_is_rejected_by_name() -> None:
    native = NativeDecoder(make_model())
    rows = Rows(native.core, 1)
    for name, value in (
        *(("logit_bias", {VOCABULARY: 1.0}), ("logit_bias", {1: math.inf}), ("forbidden", (-1,)), ("stops", (99,))),
        *(("presence_penalty", math.nan), ("frequency_penalty", math.inf), ("top_k", -1), ("top_p", 0.0)),
    ):
        with pytest.raises(UsageError, match=name):
            start(rows, native, Choice(**{name: value}))
    assert rows.free == 1
    slot = start(rows, native, Choice())
    with pytest.raises(UsageError, match="slot.* 1 rows"):
        start(rows, native, Choice())
    for work, name in (
        (Work(slot, [1], 2), "uniform: expected 2"),
        (Work(slot, [1], 1, [1.0]), "uniform"),
        (Work(slot, []), "slot 0"),
        (Work(slot, [VOCABULARY]), f"ids: expected 0 to {VOCABULARY - 1}"),
        (Work(slot, [1, 2], targets=[1]), "targets: expected 2"),
        (Work(slot, [1], targets=[-2]), "targets"),
        (Work(3, [1]), "slot"),
    ):
        with pytest.raises(UsageError, match=name):
            rows.run([work])
    with pytest.raises(UsageError, match="work: .*slot"):
        rows.run([Work(slot, [1]), Work(slot, [1])])
    with pytest.raises(UsageError, match="best"):
        rows.run([Work(slot, [1])], best=21)
    for hold in (Hold(2, 0), Hold(0, 99), Hold(0, 0, math.nan), Hold(0, 0, factor=0.0)):
        with pytest.raises(UsageError):
            rows.hold(slot, [hold])
    with pytest.raises(UsageError, match="neuron"):
        rows.watch(slot, [(0, -1)])
    rows.leave(slot)
    with pytest.raises(UsageError, match=f"slot: {slot} "):
        rows.leave(slot)
    assert rows.run([]) == []
