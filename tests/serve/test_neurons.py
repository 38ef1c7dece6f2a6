"""Traces, time constants in streams, and clamped neurons."""

import base64
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from serving import Serving

from ltc_textgen.model.state import LiquidState
from ltc_textgen.runs import Run
from ltc_textgen.serve.engine import Clamp, Neuron
from ltc_textgen.serve.tau_codes import TauReport, tau_codes
from ltc_textgen.serve.torch_engine import held, stretched

Runs = dict[str, Run]
TEXT = "it was a day at sea, and then another. " * 30  # more than two slices


def taus(run: Run, ids: list[int]) -> torch.Tensor:
    """Time constant of every neuron after every token, (T, neurons)."""
    with torch.no_grad():
        return torch.cat(run.network.time_constants(torch.tensor([ids])), dim=2)[0]


def test_a_trace_is_what_the_network_does(server: Serving, loaded: Runs) -> None:
    run = loaded["chars"]
    status, found, _ = server.post("/v1/ltc/trace", {"model": "chars", "text": TEXT})
    assert status == 200
    ids = run.tokenizer.encode(TEXT)
    assert found["tokens"] == ids
    assert found["text_offset"] == list(range(len(ids)))
    expected = taus(run, ids)
    assert found["shape"] == list(expected.shape)
    codes = np.frombuffer(base64.b64decode(found["tau"]), np.uint8).reshape(expected.shape)
    assert np.abs(codes.astype(int) - tau_codes(expected).numpy().astype(int)).max() <= 1
    with torch.no_grad():
        hidden, layers, _ = run.network.observe(torch.tensor([ids]))
        logprobs = run.network.lm_head.logits(hidden)[0].log_softmax(1)
    states = np.frombuffer(base64.b64decode(found["state"]), np.float16).reshape(expected.shape)
    np.testing.assert_allclose(states, torch.cat([seen.states[0] for seen in layers], 1), atol=2e-3)
    assert found["logprob"][0] is None
    own = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found["logprob"][1:]), own, atol=1e-4, rtol=0)


def test_a_trace_continues_from_a_state_and_has_chosen_neurons(server: Serving, loaded: Runs) -> None:
    run = loaded["chars"]
    whole = server.post("/v1/ltc/trace", {"model": "chars", "text": "it was a day", "neurons": ["L1N3", "L0N0"]})[1]
    state = base64.b64encode(run.network.read("it was").to_bytes()).decode()
    rest = server.post(
        "/v1/ltc/trace", {"model": "chars", "text": " a day", "neurons": ["L1N3", "L0N0"], "state": state}
    )[1]
    assert base64.b64decode(whole["tau"])[-12:] == base64.b64decode(rest["tau"])
    np.testing.assert_allclose(whole["logprob"][6:], rest["logprob"], atol=1e-5)
    content = server.client().post(
        "/ltc/trace",
        cast_to=bytes,
        body={"model": "chars", "text": "it was", "what": ["tau"]},
        options={"headers": {"Accept": "application/octet-stream"}},
    )
    tensors = load(content)
    assert set(tensors) == {"ids", "tau"}
    expected = taus(run, run.tokenizer.encode("it was"))
    torch.testing.assert_close(tensors["tau"].float(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({}, "text"),
        ({"text": "a", "tokens": [1]}, "text"),
        ({"text": "a" * 8193}, "text"),
        ({"text": "a", "neurons": ["L9N0"]}, "neurons.0"),
        ({"text": "a", "neurons": []}, "neurons"),
        ({"text": "a", "what": "all"}, "what"),
    ],
    ids=str,
)
def test_what_cannot_be_traced_is_named(server: Serving, document: dict[str, Any], param: str) -> None:
    status, answer, _ = server.post("/v1/ltc/trace", {"model": "chars", **document})
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_stream_reports_the_time_constants_of_what_was_read(server: Serving, loaded: Runs) -> None:
    run = loaded["chars"]
    tau = {"neurons": ["L0N2", "L1N5"], "frames_hz": 10}
    document = {"model": "chars", "prompt": "it was", "max_tokens": 30, "seed": 1, "ltc": {"tau": tau}}
    _, answer, _ = server.post("/v1/completions", document)
    (choice,) = answer["choices"]
    codes = choice["ltc"]["tau"]
    ids = run.tokenizer.encode("it was" + choice["text"])
    read = taus(run, ids)[5 : 5 + len(codes["neurons"]["L0N2"])]
    neurons = run.network.settings.neurons
    for name, place in (("L0N2", 2), ("L1N5", neurons + 5)):
        expected = tau_codes(read[:, place]).tolist()
        assert max(abs(a - b) for a, b in zip(codes["neurons"][name], expected, strict=True)) <= 1
    assert len(codes["median"]) == 2
    assert len(base64.b64decode(codes["frame"])) == 2 * neurons
    _, bad, _ = server.post("/v1/completions", {**document, "ltc": {"tau": {"neurons": ["L0N999"]}}})
    assert bad["error"]["param"] == "ltc.tau.neurons.0"


def test_codes_have_a_step_of_an_eighth_of_an_octave() -> None:
    tau = 2 ** torch.arange(-7, 20, 1 / 16)
    back = 2 ** ((tau_codes(tau).float() - 64) / 8)
    assert float((back / tau).log2().abs().max()) <= 1 / 16 + 1e-6
    report = TauReport(["L0N1"], [Neuron(0, 1)], (1, 2), 0.0)
    assert report.document(0, []) is None


def complete(server: Serving, **ltc: Any) -> str:
    document = {"model": "chars", "prompt": "it was", "max_tokens": 60, "seed": 5, "ltc": ltc}
    status, answer, _ = server.post("/v1/completions", document)
    assert status == 200, answer
    text: str = answer["choices"][0]["text"]
    return text


def test_clamps_act_from_their_token_on(server: Serving) -> None:
    plain = complete(server)
    assert complete(server, clamp=[{"neuron": "L0N1", "tau_factor": 1.0}]) == plain
    moved = [{"neuron": f"L1N{i}", "value": 3.0, "from": 30} for i in range(8)]
    late = complete(server, clamp=moved)
    assert late != plain
    assert late[:30] == plain[:30]
    assert complete(server, clamp=[{"neuron": f"L0N{i}", "tau_factor": 50.0} for i in range(32)]) != plain
    for wrong, param in (
        ({"neuron": "L0N1"}, "ltc.clamp.0"),
        ({"neuron": "L0N1", "value": 1.0, "tau_factor": 2.0}, "ltc.clamp.0"),
        ({"neuron": "L7N0", "value": 1.0}, "ltc.clamp.0.neuron"),
    ):
        document = {"model": "chars", "prompt": "a", "ltc": {"clamp": [wrong]}}
        status, answer, _ = server.post("/v1/completions", document)
        assert (status, answer["error"]["param"]) == (400, param)


def test_a_clamped_neuron_has_its_value_and_its_time_constant(loaded: Runs) -> None:
    network = loaded["chars"].network
    ids, neuron = torch.tensor([[3]]), Neuron(1, 4)
    state: LiquidState = network.initial_state(1).detach()
    clamp = Clamp(neuron, value=0.7)
    with torch.inference_mode(), stretched(network, [clamp]):
        _, after = network.advance(ids, held(state, [clamp]))
    assert after.neurons[1][0, 4].item() == pytest.approx(0.7, abs=1e-6)
    with torch.inference_mode():
        before = network.time_constants(ids, state)[1][0, 0]
        with stretched(network, [Clamp(neuron, tau_factor=4.0)]):
            slow = network.time_constants(ids, state)[1][0, 0]
        again = network.time_constants(ids, state)[1][0, 0]
    assert again.equal(before)
    ratio = slow / before
    assert ratio[4].item() == pytest.approx(4.0, rel=0.2)  # the state, on which G depends, has moved less
    others = torch.arange(len(ratio)) != 4
    torch.testing.assert_close(ratio[others], torch.ones(len(ratio) - 1))
