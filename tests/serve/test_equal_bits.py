"""The promise: a request gives the same tokens and log-probabilities alone, in a crowd, and in any order."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Serving

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.8, "n": 3},
    {"top_k": 5, "min_p": 0.05},
    {"repetition_penalty": 1.3, "stop": ["e,", "zz"]},
    {"presence_penalty": 0.7, "frequency_penalty": 0.3},
    {"logit_bias": {"3": 2.5, "5": -100}},
    {"echo": True},
    {"ltc": {"elapsed": 0.5}},
    {"ltc": {"clamp": [{"neuron": "L0N3", "value": 0.5, "from": 4}, {"neuron": "L1N2", "tau_factor": 8.0}]}},
    {"ltc": {"return_state": "base64", "cache": False}},
]


def mixed(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests of all kinds."""
    generator = random.Random(seed)
    return [
        {
            "model": generator.choice(["chars", "bytes"]),
            "prompt": "it was a day at sea, " * generator.choice([0, 1, 2, 60]),
            "max_tokens": generator.randint(1, 50),
            "seed": generator.randint(0, 1 << 40),
            "logprobs": generator.choice([0, 4]),
            **OPTIONS[number % len(OPTIONS)],
        }
        for number in range(count)
    ]


def answers(server: Serving, requests: list[dict[str, Any]], order: list[int], workers: int) -> dict[int, Any]:
    """The answer to each request, without its id and times."""

    def ask(number: int) -> Any:
        status, document, _ = server.post("/v1/completions", requests[number])
        assert status == 200, document
        usage = {key: value for key, value in document["usage"].items() if key != "prompt_tokens_details"}
        return document["choices"], usage, document["system_fingerprint"]

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(order, pool.map(ask, order), strict=True))


def without_states(found: dict[int, Any]) -> str:
    """States as bytes may name their header fields in another order."""
    for choices, _, _ in found.values():
        for choice in choices:
            if isinstance(choice.get("ltc"), dict):
                choice["ltc"].pop("state", None)
    return str(sorted(found.items()))


def test_a_crowd_changes_nothing(server: Serving) -> None:
    requests = mixed(22, 1)
    alone = without_states(answers(server, requests, list(range(len(requests))), 1))
    for seed in (2, 3):
        order = random.Random(seed).sample(range(len(requests)), len(requests))
        assert without_states(answers(server, requests, order, 16)) == alone


@pytest.mark.slow
def test_threads_and_slots_change_nothing(runs: dict[str, Path]) -> None:
    requests, seen = mixed(40, 4), set()
    for threads, slots in ((1, 64), (2, 7), (4, 64)):
        serving = Serving(runs, "--threads", str(threads), "--slots", str(slots))
        for seed in (5, 6):
            order = random.Random(seed).sample(range(len(requests)), len(requests))
            seen.add(without_states(answers(serving, requests, order, 40)))
        assert serving.stop()[0] == 0
    assert len(seen) == 1
