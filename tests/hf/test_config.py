"""The network's place in transformers: configurations, resized vocabularies, states in `generate`."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ltc_textgen.config import ModelConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.hf.config import LTCConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork

VOCABULARY = 23
LIQUID = {"block": "liquid", "coupling": "diagonal", "num_layers": 2}


def network(**settings: object) -> LiquidTimeConstantNetwork:
    torch.manual_seed(0)
    return LiquidTimeConstantNetwork(VOCABULARY, 12, steps=2, step_size=0.5, **settings).eval()


def text(batch: int = 3, tokens: int = 6) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [VOCABULARY + 4, VOCABULARY - 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("output_size", [None, VOCABULARY])
def test_the_vocabulary_can_be_resized(size: int, tied: bool, output_size: int | None, tmp_path: Path) -> None:
    model = network(**LIQUID, tie_embeddings=tied, output_size=output_size)
    ids = text().clamp_max(VOCABULARY - 4)
    before = model(ids).logits
    resized = model.resize_token_embeddings(size)
    assert resized is model.get_input_embeddings() is model.embed_tokens
    assert (model.settings.input_size, model.settings.vocabulary, model.config.vocab_size) == (size,) * 3
    assert (model.get_output_embeddings().weight is model.embed_tokens.weight) == tied
    kept = min(size, VOCABULARY)
    after = model(ids).logits
    assert after.shape[-1] == size
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    with pytest.raises(UsageError, match=f"expected 0 to {size - 1}, got {size}"):
        model(torch.tensor([[size]]))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "adaptive", "adaptive_cutoffs": (9,)}, "head = full"),
        ({"output_size": 5}, "23 and 5"),
    ],
)
def test_a_vocabulary_that_cannot_be_resized_is_rejected(settings: dict, message: str) -> None:
    model = network(**settings)
    with pytest.raises(UsageError, match=message):
        model.resize_token_embeddings(30)
    assert model.settings.input_size == VOCABULARY


def test_gradient_checkpointing_finds_the_embedding() -> None:
    model = network(**LIQUID).train()
    model.embed_tokens.requires_grad_(False)
    model.activation_checkpointing_enable()
    assert model.embed_tokens(text()).requires_grad


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
@pytest.mark.parametrize("rows", [1, 3])
def test_generate_continues_from_a_state_with_and_without_a_cache(mode: dict, rows: int) -> None:
    model, ids = network(), text(3, 1)
    state = model(text(rows, 9)).state
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0} | mode
    options |= {"return_dict_in_generate": True, "output_scores": True}
    runs = []
    for start in ({"state": state}, {"state": state, "use_cache": False}, {}):
        torch.manual_seed(3)
        runs.append(model.generate(ids, **start, **options))
    cached, whole, stateless = runs
    assert cached.sequences.equal(whole.sequences)
    torch.testing.assert_close(cached.scores, whole.scores, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cached.scores[0], stateless.scores[0], rtol=1e-2, atol=1e-2), "the state matters"


def test_unknown_keys_of_a_configuration_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'hiden_size'.*'hidden_size'"):
        LTCConfig(hiden_size=8)
    network().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"hiden_size": 8}))
    for load in (AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(UsageError, match="unknown key 'hiden_size'"):
            load(tmp_path)


def test_keys_of_transformers_are_known(tmp_path: Path) -> None:
    """Among them the generation settings and the remote code that other versions leave in a config.json."""
    known = {
        "auto_map": {"AutoConfig": "m.C"},
        "_commit_hash": "0",
        "use_cache": True,
        "max_length": 20,
        "torch_dtype": "float32",
        "vocab_size": 9,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "output_attentions": False,
        "num_labels": 2,
    }
    config = LTCConfig(**known)
    assert (config.input_size, config.num_layers) == (9, 2)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, use_cache=False).settings == config.settings
    everything = json.loads(config.to_json_string(use_diff=False))
    assert LTCConfig(**everything).settings == config.settings


@pytest.mark.parametrize(
    ("more", "name"),
    [({"hidden_size": 512}, "hidden_size"), ({"nonsense": 3}, "nonsense"), ({"dropout": 0.0}, "dropout")],
)
def test_nothing_is_given_beside_a_configuration(more: dict, name: str) -> None:
    config = LTCConfig.from_settings(ModelConfig(input_size=5, hidden_size=8))
    with pytest.raises(UsageError, match=f"{name}"):
        LiquidTimeConstantNetwork(config, **more)
    assert LiquidTimeConstantNetwork(config).settings.hidden_size == 8
