"""The network without transformers is the network with it, and writing text needs no more."""

import copy
import json
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from ltc_textgen.config import ModelConfig, SamplingConfig
from ltc_textgen.generation import generate
from ltc_textgen.generation.native import why_not
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.kernels.library import LIBRARY
from ltc_textgen.model.network import CHUNK, FIRST_STD, LiquidNetwork, read
from ltc_textgen.runs import load_run, memory_of

KINDS = {
    "plain": {},
    "frozen": {"adaptive": False, "solver": "explicit"},
    "liquid": {"block": "liquid", "coupling": "diagonal", "num_layers": 2},
    "tied": {"block": "liquid", "coupling": "diagonal", "tie_embeddings": True, "learned_initial_state": True},
    "adaptive head": {"block": "liquid", "head": "adaptive", "hidden_size": 16, "adaptive_cutoffs": [4, 7]},
    "wired": {"coupling": "synaptic", "wiring": {"kind": "auto_ncp", "output_size": 4}},
    "closed form": {"coupling": "cfc", "block": "liquid", "expansion": 1.0},
    "wired closed form": {"coupling": "cfc", "wiring": {"kind": "auto_ncp", "output_size": 4}},
}
every_kind = pytest.mark.parametrize("more", KINDS.values(), ids=KINDS)
IDS = torch.tensor([[1, 5, 2, 2, 10, 0], [3, 3, 0, 7, 9, 4]])


def twins(more: dict) -> tuple[LiquidTimeConstantNetwork, LiquidNetwork]:
    """A model of transformers and a plain network with its weights, none of which is where it started."""
    settings = ModelConfig.parse({"input_size": 11, "hidden_size": 8, "steps": 2, **more}, "model")
    torch.manual_seed(3)
    model = LiquidTimeConstantNetwork.from_settings(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.manual_seed(4)
    plain = LiquidNetwork(settings).eval()
    plain.load_state_dict(model.state_dict())
    return model, plain


@every_kind
def test_both_compute_the_same_bits(more: dict) -> None:
    model, plain = twins(more)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert plain.fingerprint() == model.fingerprint()
    mask = torch.tensor([[False, True, True, True, True, True], [True, True, False, True, True, False]])
    for given in ({}, {"elapsed": 0.7}, {"mask": mask}):
        with torch.no_grad():
            hidden, state = plain.advance(IDS, **given)
            theirs, their_state = model.advance(IDS, **given)
            assert torch.equal(plain.lm_head.logits(hidden), model.lm_head.logits(theirs))
            hidden, state = plain.advance(IDS, state, **given)
            theirs, their_state = model.advance(IDS, their_state, **given)
        assert torch.equal(hidden, theirs)
        assert all(
            torch.equal(a, b) for a, b in zip(state.tensors().values(), their_state.tensors().values(), strict=True)
        )
    with torch.no_grad():
        logits = model(IDS).logits
        assert torch.equal(plain.lm_head.logits(plain.advance(IDS)[0]), logits)
        ours, theirs = plain.time_constants(IDS), model.time_constants(IDS)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    if more.get("coupling") == "diagonal" and LIBRARY is not None:
        assert why_not(plain) == why_not(model) == ""


@every_kind
def test_a_fresh_network_starts_as_the_model_does(more: dict) -> None:
    settings = ModelConfig.parse({"input_size": 2000, "hidden_size": 8, "steps": 2, **more}, "model")
    torch.manual_seed(0)
    plain, model = LiquidNetwork(settings), LiquidTimeConstantNetwork.from_settings(settings)
    for (name, ours), theirs in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        spread, their_spread = ours.float().std(correction=0), theirs.float().std(correction=0)
        assert ours.isfinite().all(), name
        if ours.numel() > 200:
            torch.testing.assert_close(spread, their_spread, rtol=0.25, atol=1e-6)
        elif not their_spread:
            assert torch.equal(ours, theirs), name
    tied = settings.tie_embeddings
    torch.testing.assert_close(plain.embed_tokens.weight.std().item(), FIRST_STD if tied else 1.0, rtol=0.05, atol=0)
    if tied:
        assert plain.lm_head.projection.weight is plain.embed_tokens.weight


@every_kind
def test_the_model_of_a_network_has_its_weights(more: dict) -> None:
    _, plain = twins(more)
    before = plain.fingerprint()
    model = LiquidTimeConstantNetwork.sharing(plain)
    own, shared = (network.state_dict(keep_vars=True) for network in (plain, model))
    assert own.keys() == shared.keys()
    assert all(own[name] is shared[name] for name in own)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain.lm_head.logits(plain.advance(IDS)[0]))
    assert model.fingerprint() == plain.fingerprint() == before


def test_copies_of_a_plain_network_stay_tied() -> None:
    _, plain = twins(KINDS["tied"])
    for copied in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert copied.lm_head.projection.weight is copied.embed_tokens.weight
        assert copied.fingerprint() == plain.fingerprint()


def test_a_run_is_both_networks_in_one(run: Path) -> None:
    loaded = load_run(run)
    plain, full = loaded.network, loaded.model
    assert type(plain) is LiquidNetwork
    assert type(full) is LiquidTimeConstantNetwork
    assert loaded.model is full
    assert full.run_directory == run
    assert full.tokenizer is plain.tokenizer is loaded.tokenizer
    assert plain.fingerprint() == full.fingerprint()
    assert plain.training is full.training is False
    own, shared = dict(plain.named_parameters()), dict(full.named_parameters())
    assert own.keys() == shared.keys()
    assert all(own[name] is shared[name] for name in own)
    assert not any(tensor.is_meta for tensor in full.state_dict().values())
    for given in ({}, {"num_samples": 2, "top_k": 5}, {"temperature": 0.0}):
        sampling = SamplingConfig(max_tokens=30, seed=4, **given)
        texts = [
            [completion.text for completion in generate(one, loaded.tokenizer, "On day", sampling)]
            for one in (plain, full)
        ]
        assert texts[0] == texts[1]
    assert plain.read("On day 7").model == full.read("On day 7").model


SCRIPT = """
import json, sys
from ltc_textgen.cli import main as cli
for arguments in json.loads(sys.argv[1]):
    code = cli.run(arguments)
    print(f"<{code}>", flush=True)
heavy = {"transformers", "accelerate", "datasets", "pandas", "scipy", "matplotlib", "onnx"} & set(sys.modules)
print("imported:", *sorted(heavy))
"""


def command(*calls: list[object]) -> list[str]:
    """What commands in a process of their own print, each up to its exit code, and last what was imported."""
    arguments = json.dumps([[str(word) for word in call] for call in calls])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    return [part for part in done.stdout.splitlines() if part]


ENGINES = ["torch"] if LIBRARY is None else ["torch", "native", "int8"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_writing_imports_no_transformers(run: Path, tmp_path: Path, engine: str) -> None:
    kept = tmp_path / "story.state"
    common = ["generate", run, "--engine", engine, "-n", 12, "--seed", 5]
    lines = command(
        [*common, "-p", "On day"],
        [*common, "-p", "On day", "--json"],
        [*common, "-p", "On day 7 the", "--save-state", kept],
        [*common, "--state", kept, "-p", " sea", "--num-samples", 2],
        ["generate", run / "nowhere"],
    )
    assert [line for line in lines if line.startswith("<")] == ["<0>"] * 4 + ["<4>"]
    model, tokenizer = load_run(run).model, load_run(run).tokenizer
    sampling = SamplingConfig(max_tokens=12, seed=5)
    memory = memory_of(load_run(run))
    text = generate(model, tokenizer, "On day", sampling, memory=memory, engine=engine)[0].text  # type: ignore[arg-type]
    document = next(json.loads(line) for line in lines if line.startswith("{"))
    assert document["samples"][0]["text"] == text
    assert lines[: lines.index("<0>")] == [line for line in f"On day{text}".split("\n") if line]
    assert lines[-1] == "imported:"


@pytest.mark.slow
def test_measuring_imports_no_transformers(run: Path, tmp_path: Path) -> None:
    (text := tmp_path / "text.txt").write_text("On day 7 the sea was grey.\n" * 20)
    more = ["--dynamic", "--cache", 10, "--sample", 5]
    lines = command(["eval", run, "--data", text, *more], ["inspect", run])
    assert [line for line in lines if line.startswith("<")] == ["<0>"] * 2
    assert lines[-1] == "imported:"


@pytest.mark.slow
def test_what_was_made_for_a_hub_is_written_with_as_lightly(run: Path, tmp_path: Path) -> None:
    load_run(run).model.save_for_hub(tmp_path / "shared")
    assert command(["generate", tmp_path / "shared", "-p", "On day", "-n", 3])[-2:] == ["<0>", "imported:"]


@pytest.mark.slow
def test_the_test_sees_what_is_imported(run: Path) -> None:
    """With a key that only transformers can know it is asked; else the tests above could not fail."""
    own = (run / "config.json").read_text()
    try:
        (run / "config.json").write_text(json.dumps(json.loads(own) | {"num_labels": 2}))
        assert "transformers" in command(["generate", run, "-n", 1])[-1]
    finally:
        (run / "config.json").write_text(own)


def test_a_network_of_another_kind_is_not_taken_for_ours() -> None:
    class Other(LiquidNetwork):
        def advance(self, *args: object, **kwargs: object) -> Any:
            return super().advance(*args, **kwargs)

    settings = ModelConfig.parse({"input_size": 9, "hidden_size": 8, "coupling": "diagonal", "block": "liquid"}, "")
    assert why_not(Other(settings))
    if LIBRARY is not None:
        assert not why_not(LiquidNetwork(settings))


@pytest.mark.parametrize("way", ["text", "ids"])
def test_reading_keeps_no_chunk_but_the_last(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = LiquidNetwork(ModelConfig(input_size=9, hidden_size=8, steps=1))
    alive: list[weakref.ref[torch.Tensor]] = []
    most, original = 0, network.advance

    def advance(*args: Any) -> Any:
        nonlocal most
        most = max(most, sum(hidden() is not None for hidden in alive))
        hidden, state = original(*args)
        alive.append(weakref.ref(hidden))
        return hidden, state

    monkeypatch.setattr(network, "advance", advance)
    ids = torch.zeros(1, 6 * CHUNK, dtype=torch.int64)
    network.read(ids) if way == "text" else read(network, ids)
    assert len(alive) == 6
    assert most <= 2
