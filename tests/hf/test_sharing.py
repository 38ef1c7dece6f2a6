"""Models that go out and come in: cards, uploads to a hub on loopback, remote code, and pickles, which stay outside."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub import Hub
from huggingface_hub import ModelCard
from outcomes import STORY
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import hub as transformers_hub

from ltc_textgen.config import RunConfig
from ltc_textgen.data.train_tokenizer import character_tokenizer
from ltc_textgen.errors import ArtifactError, LogitsError, UsageError
from ltc_textgen.hf import modeling_ltc, sharing
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.hf.sharing import AUTO_MAP
from ltc_textgen.runs import load_run, save_run, save_weights

TOKENIZER = character_tokenizer(STORY)
SETTINGS = {"block": "liquid", "coupling": "diagonal", "hidden_size": 12, "num_layers": 2}
RESULT = {"best_val_loss": 0.5, "tokens_per_second": 1234.4, "seconds": 59.6, "step": 2000}
FACTS = {
    "corpus": "/home/somebody/secret/story.txt",
    "tokenizer": "char",
    "train_tokens": 90_000,
    "valid_tokens": 10_001,
    "valid_bytes": 10_010,
    "valid_words": 2_000,
    "result": RESULT,
}
IDS = torch.tensor([TOKENIZER.encode("On day 7 the sea")])


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = RunConfig.parse({"model": SETTINGS})
    model = LiquidTimeConstantNetwork.from_settings(config.model_config_for(TOKENIZER.vocab_size))
    save_run(tmp_path / "run", model, TOKENIZER, config, FACTS)
    save_weights(tmp_path / "run" / "model.safetensors", model, {"tokenizer": TOKENIZER.fingerprint})
    return tmp_path / "run"


@pytest.fixture
def uploads(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(transformers_hub, "_hf_api", None)  # transformers keeps one, with the address it had
    return hub


def card_of(hub: Hub) -> ModelCard:
    return ModelCard(hub.files["models", "me/story"]["README.md"].decode())


# --- the card


def test_a_card_says_what_is_known(run_directory: Path) -> None:
    text = sharing.model_card(load_run(run_directory).model, "me/story", run_directory)
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-generation"
    assert set(sharing.TAGS) <= set(card.data.tags)
    assert "secret" not in text, "a path of somebody's machine"
    for row in (
        "| corpus | story.txt, 90,000 tokens |",
        "| validation loss | 0.5000 nats per token, over 10,000 tokens |",
        "| perplexity | 1.65 per token |",
        "| bits per byte | 0.7206, over 10,010 bytes |",
        "| word perplexity | 12.18, over 2,000 words |",
        "| training | 2,000 steps, 1,234 tokens/s in 60 s |",
    ):
        assert row in text
    assert card.data.license is None
    assert 'from_pretrained("me/story")' in text


@pytest.mark.slow
def test_time_constants_of_a_card_are_those_of_the_layers(run_directory: Path) -> None:
    model = load_run(run_directory).model.train()
    ids = sharing.written(model.eval(), 40)
    assert ids.shape == (1, 41)
    assert ids.equal(sharing.written(model, 40))
    assert ids[0, 0] == TOKENIZER.eos_token_id
    model.train()
    text = sharing.model_card(model, "me/story", run_directory)
    assert model.training
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| 0 |", "| 1 |"))]
    assert len(rows) == 2
    model.eval()
    for row, tau in zip(rows, model.time_constants(sharing.written(model)), strict=True):
        shortest, *_, longest = (float(value.strip(" |")) for value in row[1:])
        assert (shortest, longest) == pytest.approx((tau.min().item(), tau.max().item()), abs=0.006)


def test_a_model_that_has_learned_since_claims_no_loss(run_directory: Path) -> None:
    model = load_run(run_directory).model
    assert sharing.training_facts(model, run_directory) == FACTS
    with torch.no_grad():
        model.lm_head.projection.bias[0] += 1
    assert sharing.training_facts(model, run_directory) == {}
    text = sharing.model_card(model, "me/story", run_directory)
    assert "nats" not in text
    assert "| corpus |" not in text
    for content in ("", "{}", "[1]", '{"facts": 3}'):
        (run_directory / "training.json").write_text(content)
        assert sharing.training_facts(load_run_without_facts(run_directory), run_directory) == {}


def load_run_without_facts(directory: Path) -> LiquidTimeConstantNetwork:
    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.slow
def test_what_the_owner_wrote_stays(run_directory: Path) -> None:
    model = load_run(run_directory).model
    first = sharing.model_card(model, "me/story")
    edited = first.replace("---\n", "---\nlicense: mit\n", 1)
    edited = edited.replace(sharing.BEGIN, f"My model.\n\n{sharing.BEGIN}")
    second = sharing.model_card(model, "me/story", run_directory, f"{edited}\nThanks.\n")
    assert ModelCard(second).data.license == "mit"
    assert "My model." in second
    assert second.endswith("\nThanks.\n")
    assert "| validation loss |" not in first
    assert "| validation loss |" in second, "what is ours is renewed"
    assert second.count(sharing.BEGIN) == second.count(sharing.END) == 1
    own = "---\nlicense: mit\n---\n# All my own words\n"
    kept = sharing.model_card(model, "me/story", run_directory, own)
    assert ModelCard(kept).text == ModelCard(own).text


def test_weights_with_nan_are_rejected(run_directory: Path, tmp_path: Path) -> None:
    model = load_run(run_directory).model
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(LogitsError):
        model.save_for_hub(tmp_path / "out")


@pytest.mark.parametrize("settings", [{}, {"coupling": "cfc"}, {"head": "adaptive", "adaptive_cutoffs": (9,)}])
def test_every_kind_of_network_has_a_card(settings: dict) -> None:
    model = LiquidTimeConstantNetwork(23, 12, steps=2, step_size=0.5, **settings)
    assert "| median |" in sharing.model_card(model, "me/story")


# --- to the hub and back


@pytest.mark.slow
@pytest.mark.parametrize("load", [lambda path: load_run(path).model, AutoModelForCausalLM.from_pretrained])
def test_what_is_pushed_loads_again(load: object, run_directory: Path, tmp_path: Path, uploads: Hub) -> None:
    model = load(run_directory)
    model.push_to_hub("me/story", token="hf_secret", tags=["sea"])
    files = uploads.files["models", "me/story"]
    expected = {"README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_ltc.py"}
    assert set(files) == expected | {"tokenizer.json", "tokenizer_config.json"}
    assert set(uploads.tokens) == {"Bearer hf_secret"}
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    card = card_of(uploads)
    assert "0.5000 nats per token, over 10,000 tokens" in card.text
    assert {"sea", *sharing.TAGS} <= set(card.data.tags)
    assert sharing.GENERIC not in card.text

    again = AutoModelForCausalLM.from_pretrained("me/story")
    assert type(again) is LiquidTimeConstantNetwork
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained("me/story")("On day 7 the sea").input_ids == IDS[0].tolist()
    for name, content in files.items():  # as `hf download` does
        (tmp_path / "downloaded").mkdir(exist_ok=True)
        (tmp_path / "downloaded" / name).write_bytes(content)
    assert load_run(tmp_path / "downloaded").tokenizer.fingerprint == TOKENIZER.fingerprint


@pytest.mark.slow
def test_a_second_push_keeps_the_licence(run_directory: Path, uploads: Hub) -> None:
    model = load_run(run_directory).model
    model.push_to_hub("me/story")
    files = uploads.files["models", "me/story"]
    files["README.md"] = files["README.md"].replace(b"---\n", b"---\nlicense: mit\n", 1)
    with torch.no_grad():
        model.lm_head.projection.bias[0] += 1
    model.save_pretrained(run_directory.parent / "pushed", push_to_hub=True, repo_id="me/story")
    card = card_of(uploads)
    assert card.data.license == "mit"
    assert "nats" not in card.text, "these are other weights"
    again = AutoModelForCausalLM.from_pretrained("me/story")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=0)


# --- remote code


@pytest.mark.slow
def test_a_program_that_does_not_know_the_package_loads_the_model(run_directory: Path, tmp_path: Path) -> None:
    model = load_run(run_directory).model
    model.save_for_hub(tmp_path / "shared", "me/story")
    assert 'from_pretrained("me/story")' in (tmp_path / "shared" / "README.md").read_text()
    program = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "ltc_textgen" not in sys.modules
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "shared")!r}, trust_remote_code=True)
ids = AutoTokenizer.from_pretrained({str(tmp_path / "shared")!r})("On day", return_tensors="pt").input_ids
assert type(model).__module__.startswith("transformers_modules")
print(model.generate(ids, max_new_tokens=6, do_sample=False).tolist())
model.save_pretrained({str(tmp_path / "again")!r})
again = AutoModelForCausalLM.from_pretrained({str(tmp_path / "again")!r}, trust_remote_code=True)
assert again(ids).logits.equal(model(ids).logits)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([TOKENIZER.encode("On day")])
    expected = model.generate(ids, max_new_tokens=6, do_sample=False).tolist()
    assert done.stdout.strip() == str(expected)
    assert (tmp_path / "again" / "modeling_ltc.py").is_file(), "it stays remote code"


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(modeling_ltc.__file__).read_text()
    for name in ("ltc_textgen", "ltc_textgen.hf.config"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="^[^\n]*pip install ltc-textgen$"):
        exec(compile(source, "modeling_ltc.py", "exec"), {"__name__": "modeling_ltc"})


# --- damage and pickles


def test_a_flipped_bit_is_rejected(run_directory: Path, uploads: Hub) -> None:
    path = run_directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    repository = {name: (run_directory / name).read_bytes() for name in ("config.json", "model.safetensors")}
    uploads.add("models", "me/story", repository)
    for place in (run_directory, "me/story"):
        with pytest.raises(ArtifactError, match=r"model\.safetensors") as error:
            AutoModelForCausalLM.from_pretrained(place)
        assert "\n" not in str(error.value)


def test_weights_without_a_checksum_load(run_directory: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(run_directory)
    model.save_pretrained(tmp_path / "saved", max_shard_size="4KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_rejected_and_never_run(name: str, run_directory: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    (run_directory / "model.safetensors").unlink()
    (run_directory / name).write_bytes(pickle.dumps(Trap()))
    for load in (AutoModelForCausalLM.from_pretrained, LiquidTimeConstantNetwork.from_pretrained):
        with pytest.raises(ArtifactError, match=f"only {name};") as error:
            load(run_directory)
        assert "\n" not in str(error.value)
        with pytest.raises(UsageError, match="use_safetensors=False"):
            load(run_directory, use_safetensors=False)
    assert not (tmp_path / "ran").exists()
    (run_directory / name).unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(run_directory)
