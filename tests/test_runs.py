"""Run directories: written whole, checked before they are believed."""

import errno
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltc_textgen import runs
from ltc_textgen.config import ModelConfig, RunConfig, WiringConfig
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.data.train_tokenizer import character_tokenizer
from ltc_textgen.errors import ArtifactError, LTCError
from ltc_textgen.hf.config import LTCConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.io.checked import verify_manifest, write_manifest
from ltc_textgen.runs import (
    load_run,
    save_run,
    save_weights,
    write_atomic,
)

SETTINGS = {"coupling": "diagonal", "block": "liquid", "hidden_size": 6, "num_layers": 2}


def tokenizer() -> TextTokenizer:
    return character_tokenizer("abcdefg hij\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = RunConfig.parse({"model": SETTINGS})
    model = LiquidTimeConstantNetwork.from_settings(config.model_config_for(tokenizer().vocab_size))
    save_run(tmp_path / "run", model, tokenizer(), config, {"corpus": "letters"})
    save_weights(tmp_path / "run" / "model.safetensors", model, {"tokenizer": tokenizer().fingerprint})
    return tmp_path / "run"


def reject(run: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        load_run(run)
    assert "\n" not in str(error.value)


def test_a_run_loads_with_nothing_else(run: Path) -> None:
    moved = run.rename(run.parent / "elsewhere with spaces é")
    loaded = load_run(moved)
    assert loaded.config == RunConfig.parse({"model": SETTINGS})
    assert loaded.facts == {"corpus": "letters"}
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("abc\nhij")) == "abc\nhij"
    assert not loaded.model.training
    weights = load_file(moved / "model.safetensors")
    torch.testing.assert_close(
        loaded.model.embed_tokens.weight.detach(), weights["embed_tokens.weight"], rtol=0, atol=0
    )
    assert loaded.model.generation_config.eos_token_id == loaded.tokenizer.eos_token_id


@pytest.mark.parametrize("offset", [-1, -400, 9, 60])
def test_a_flipped_bit_in_the_weights_is_rejected(run: Path, offset: int) -> None:
    path = run / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)
    reject(run, r"model\.safetensors")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_weights_are_rejected(run: Path, length: int) -> None:
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    reject(run, r"model\.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickles_are_rejected_and_never_run(run: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (run / "exploded",))

    (run / "model.safetensors").unlink()
    (run / name).write_bytes(pickle.dumps(Bomb()))
    reject(run, name)
    assert not (run / "exploded").exists()


def test_weights_of_another_configuration_are_rejected(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    reject(run, r"model\.safetensors.*config\.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("norm.weight"), "norm.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra"),
        (lambda w: w.update({"norm.weight": torch.zeros(3)}), r"norm\.weight: expected \(6,\), got \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_rejected_by_name(run: Path, change: object, message: str) -> None:
    weights = load_file(run / "model.safetensors")
    change(weights)  # type: ignore[operator]
    save_file(weights, run / "model.safetensors")
    reject(run, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config\.json"),
        ("[]", "JSON object.*list"),
        ('{"model_type": "gpt2"}', "model_type.*'gpt2'.*'ltc'"),
        ('{"model_type": "ltc", "input_size": -1}', "input_size"),
        ('{"model_type": "ltc", "input_size": 5, "hiden_size": 1}', "'hiden_size'"),
        ('{"model_type": "ltc", "input_size": "many"}', "input_size"),
    ],
)
def test_a_bad_configuration_is_rejected_with_its_key(run: Path, content: str, message: str) -> None:
    (run / "config.json").write_text(content)
    reject(run, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", "{", r"generation_config\.json"),
        ("generation_config.json", "[]", "JSON object.*list"),
        ("training.json", '{"run": []}', "training.json"),
        ("training.json", '{"run": {"model": {"hidden_size": -1}}}', r"training\.json: .*hidden_size"),
    ],
)
def test_what_lies_beside_the_weights_is_checked_too(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    reject(run, message)


def test_a_setting_that_generate_cannot_follow_is_rejected_where_there_is_one(run: Path) -> None:
    (run / "generation_config.json").write_text('{"max_new_tokens": -1}')
    with pytest.raises(ArtifactError, match=r"generation_config\.json: .*max_new_tokens"):
        _ = load_run(run).model
    load_run(run)  # the network alone has no `generate` of transformers


def test_keys_of_transformers_are_known_with_and_without_it(run: Path) -> None:
    assert all(key not in ModelConfig.model_fields for key in runs.USUAL_KEYS)
    LTCConfig.reject_unknown(runs.USUAL_KEYS, "config.json")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"num_labels": 2, "_mine": 1}))
    assert load_run(run).network.settings == load_run(run).model.settings


def test_another_tokenizer_is_rejected(run: Path) -> None:
    character_tokenizer("abc").save(run)
    reject(run, r"tokenizer.* 5 .* 14")
    character_tokenizer("ABCDEFG HIJ\n").save(run)
    reject(run, r"tokenizer\.json.*model\.safetensors")


def test_a_missing_file_or_directory_is_named(run: Path) -> None:
    reject(run / "nowhere", r"nowhere.*ltc train --out")
    (run / "tokenizer.json").unlink()
    reject(run, r"tokenizer\.json")
    (run / "config.json").unlink()
    reject(run, r"config\.json")


def test_numbers_that_are_not_finite_are_never_saved(run: Path) -> None:
    model = load_run(run).model
    before = (run / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(LTCError, match=r"norm\.weight"):
        save_weights(run / "model.safetensors", model, {})
    assert (run / "model.safetensors").read_bytes() == before


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LTCError, match="file: No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_manifests_name_what_changed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    write_manifest(tmp_path, {"step": 3})
    assert verify_manifest(tmp_path)["step"] == 3
    (tmp_path / "a").write_text("3")
    with pytest.raises(ArtifactError, match="/a "):
        verify_manifest(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(ArtifactError, match="/a "):
        verify_manifest(tmp_path)


def test_what_save_pretrained_wrote_loads_too(run: Path) -> None:
    model = load_run(run).model
    with torch.no_grad():
        model.norm.weight[0] = 3.0
    model.save_pretrained(run)
    (run / "training.json").unlink()
    again = load_run(run)
    assert again.config is None
    assert again.model.norm.weight[0].item() == 3.0


def test_a_setting_that_is_added_later_changes_no_fingerprint() -> None:
    """Else no earlier run would load."""

    class Later(ModelConfig):
        another: int = 3
        wiring: LaterWiring | None = None

    given = {"coupling": "synaptic", "wiring": {"kind": "auto_ncp", "output_size": 4}, "solver": "explicit"}
    now, later = (kind(input_size=5, **given) for kind in (ModelConfig, Later))
    assert runs.fingerprint(later) == runs.fingerprint(now)
    assert runs.fingerprint(Later(input_size=5, **given, another=4)) != runs.fingerprint(now)


class LaterWiring(WiringConfig):
    another: int = 3


def test_settings_have_a_fingerprint() -> None:
    one, two = (ModelConfig(input_size=5, hidden_size=size) for size in (3, 4))
    assert runs.fingerprint(one) != runs.fingerprint(two)
    assert runs.fingerprint(one) == runs.fingerprint(ModelConfig(input_size=5, hidden_size=3))
