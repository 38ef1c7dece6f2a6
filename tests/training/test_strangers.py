"""Run directories that a stranger made, or a killed process left: validated before anything in them is used."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import Listener, settings

from ltc_textgen import runs
from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.io.checked import sha256_file
from ltc_textgen.io.hashing import sha256_json
from ltc_textgen.runs import load_run
from ltc_textgen.training import checkpoint
from ltc_textgen.training.checkpoint import list_checkpoints
from ltc_textgen.training.loop import train
from ltc_textgen.training.progress import Progress
from ltc_textgen.training.record import check_record


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(settings(corpus, max_steps=2), out, reporter=Listener())
    return out


def resealed(directory: Path, name: str) -> None:
    """Rewrite the checksums, as an attacker would."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest.pop("sha256")
    manifest["files"][name] = sha256_file(directory / name)
    manifest["sha256"] = sha256_json(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


RECORDS: dict[str, Any] = {
    "progress.step": [-1, 1.5, "2", 10**30, True, 1],
    "progress.seconds": [-1.0, 1e300, "now", None],
    "progress.best_loss": [[1.0]],
    "progress.metrics_bytes": [-5],
    "progress": [3],
    "random": [None, [{}], [{"python": [3, [0], None], "numpy": None}]],
    "random.0.numpy.2": [10**6, -1, "0"],
    "random.0.numpy.1": [[0], [2**32] * 624],
    "random.0.python.1": [[0] * 624 + [625], [0] * 626, [-1] * 625],
    "threads": [0, "all"],
    "identity": [[]],
    "train": [None],
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place in RECORDS for value in RECORDS[place]])
def test_a_record_with_a_wrong_value_is_rejected(trained, tmp_path, place, value) -> None:
    directory = tmp_path / list_checkpoints(trained)[0].name
    shutil.copytree(list_checkpoints(trained)[0], directory)
    record = json.loads((directory / "progress.json").read_text())
    *outer, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inner = record
    for part in outer:
        inner = inner[part]
    inner[last] = value
    (directory / "progress.json").write_text(json.dumps(record))
    resealed(directory, "progress.json")
    with pytest.raises(ArtifactError, match="progress"):
        check_record(checkpoint.read_checkpoint(directory).progress, directory)


def test_a_record_that_was_written_is_read(trained) -> None:
    directory = list_checkpoints(trained)[0]
    record = checkpoint.read_checkpoint(directory).progress
    check_record(record, directory)
    progress = Progress.from_dict(record["progress"] | {"of_a_later_version": 1})
    assert (progress.step, progress.to_dict()) == (2, record["progress"])
    assert checkpoint.recorded_progress(trained) == progress


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("state", lambda tensors: {k: v[:1] for k, v in tensors.items()}),
        ("state", lambda tensors: {k: torch.full_like(v, torch.inf) for k, v in tensors.items()}),
        ("state", lambda tensors: {k: v.long() for k, v in tensors.items()}),
        ("state", lambda tensors: dict(list(tensors.items())[1:])),
        ("random", lambda tensors: {k: v[:10] for k, v in tensors.items()}),
        ("random", lambda tensors: {}),
    ],
)
def test_states_that_do_not_fit_are_rejected(trained, corpus, tmp_path, name, change) -> None:
    out = shutil.copytree(trained, tmp_path / "run")
    for directory in list_checkpoints(out):
        file = directory / f"{name}.safetensors"
        tensors = load_file(file)
        assert tensors
        save_file(change(tensors) or {"nothing": torch.zeros(1)}, file)
        resealed(directory, file.name)
    with pytest.raises(ArtifactError):
        train(settings(corpus, max_steps=3), out, resume=True, reporter=Listener())


@pytest.mark.parametrize("name", [".lock", ".lock-holder.json", "metrics.jsonl", "checkpoints"])
def test_nothing_is_written_through_a_link(trained, corpus, tmp_path, name) -> None:
    out, victim = shutil.copytree(trained, tmp_path / "run"), tmp_path / "victim"
    if name == "checkpoints":
        (out / name).rename(victim)
    else:
        victim.write_text("of someone else\n")
        (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(victim)
    before = sorted(path.name for path in victim.iterdir()) if victim.is_dir() else victim.read_text()
    run = settings(corpus, max_steps=3)
    if name == ".lock-holder.json":  # replaced, not written into
        train(run, out, resume=True, reporter=Listener())
    else:
        with pytest.raises(ArtifactError, match=name):
            train(run, out, resume=True, reporter=Listener())
    assert before == (sorted(path.name for path in victim.iterdir()) if victim.is_dir() else victim.read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 1_000_000},
        {"num_layers": 256, "hidden_size": 4096},
        {"expansion": 64.0, "hidden_size": 8192},
        {"coupling": "full", "hidden_size": 100_000},
        {"coupling": "synaptic", "hidden_size": 100_000},
        {"coupling": "cfc", "cfc_backbone_units": 1_000_000},
        {"hidden_size": 10**30},
    ],
)
def test_a_configuration_larger_than_its_weights_builds_nothing(trained, tmp_path, monkeypatch, change) -> None:
    out = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | change))

    def build(*_):
        raise AssertionError("a network was built")

    monkeypatch.setattr("ltc_textgen.model.network.LiquidNetwork.__init__", build)
    with pytest.raises(ArtifactError):
        load_run(out)


@pytest.mark.parametrize("coupling", ["diagonal", "full", "synaptic", "cfc"])
@pytest.mark.parametrize("block", ["plain", "liquid"])
@pytest.mark.parametrize("wired", [False, True])
def test_the_bound_on_the_size_is_one(coupling, block, wired) -> None:
    from ltc_textgen.config import ModelConfig
    from ltc_textgen.model.network import LiquidNetwork
    from ltc_textgen.model.size import least_numbers

    if wired and coupling not in ("synaptic", "cfc"):
        pytest.skip("no wiring")
    wiring = {"kind": "auto_ncp", "output_size": 3, "sparsity": 0.5} if wired else None
    made = ModelConfig(input_size=11, hidden_size=10, coupling=coupling, block=block, num_layers=2, wiring=wiring)
    numbers = sum(tensor.numel() for tensor in LiquidNetwork(made).state_dict().values())
    assert least_numbers(made) <= numbers
    assert wired or least_numbers(made) > numbers / 12


@pytest.mark.parametrize("head", [{"head": "full"}, {"head": "adaptive"}, {"tie_embeddings": True}], ids=str)
def test_the_bound_counts_the_output_layer(head) -> None:
    from ltc_textgen.config import ModelConfig
    from ltc_textgen.model.network import LiquidNetwork
    from ltc_textgen.model.size import least_numbers

    made = ModelConfig(input_size=900, hidden_size=16, num_layers=1, **head)
    numbers = sum(tensor.numel() for tensor in LiquidNetwork(made).state_dict().values())
    numbers -= 900 * 16 if head.get("tie_embeddings") else 0  # one matrix under two names
    assert 0.5 * numbers < least_numbers(made) <= numbers


@pytest.mark.parametrize("weights", [True, False])
def test_an_output_layer_of_any_size_is_rejected_before_it_is_built(corpus, tmp_path, weights) -> None:
    out = tmp_path / "run"
    train(settings(corpus, max_steps=1), out, reporter=Listener())
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"output_size": 2**63 - 1, "tie_embeddings": False}))
    if not weights:
        (out / "model.safetensors").unlink()
    with pytest.raises(ArtifactError):
        load_run(out)


def test_a_network_too_large_for_the_memory_is_not_begun(corpus, tmp_path) -> None:
    with pytest.raises(UsageError, match="GB"):
        train(settings(corpus, {"hidden_size": 500_000}, max_steps=1), tmp_path / "run", reporter=Listener())


@pytest.mark.parametrize("fails", ["write_remote_code", "write_atomic", "tokenizer"])
def test_a_start_that_is_cut_between_two_files_is_resumed(corpus, tmp_path, monkeypatch, fails) -> None:
    out, run = tmp_path / "run", settings(corpus, max_steps=1)

    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if fails == "write_atomic":
            patch.setattr(runs, "write_atomic", cut)
        elif fails == "tokenizer":
            patch.setattr("ltc_textgen.data.tokenizers.TextTokenizer.save", cut)
        else:
            patch.setattr("ltc_textgen.hf.sharing.write_remote_code", cut)
        with pytest.raises(KeyboardInterrupt):
            train(run, out, reporter=Listener())
    assert not (out / "tokenizer.json").exists()
    for resume in (False, True):
        again = shutil.copytree(out, tmp_path / f"again-{resume}")
        assert train(run, again, resume=resume, reporter=Listener()).step == 1


def test_settings_alone_are_no_run_to_lose(trained, corpus, tmp_path) -> None:
    """An earlier version wrote config.json before training.json."""
    run = settings(corpus, max_steps=1)
    for name, content in (("ours", (trained / "config.json").read_text()), ("foreign", '{"model_type": "gpt2"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    assert train(run, tmp_path / "ours", reporter=Listener()).step == 1
    with pytest.raises(UsageError):
        train(run, tmp_path / "foreign", reporter=Listener())


def test_a_curve_whose_sample_holds_other_line_ends_is_read(trained, corpus, tmp_path) -> None:
    """U+2028 in a sample ends no line of JSON: without checkpoints, the validated run must not be started over."""
    out = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    (out / "model.safetensors").unlink()
    (out / "metrics.jsonl").write_text('{"step": 2, "sample": "a\u2028b", "val_loss": 1.0}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="checkpoints"):
        train(settings(corpus, max_steps=3), out, resume=True, reporter=Listener())
