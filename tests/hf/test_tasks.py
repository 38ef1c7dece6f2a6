"""Other heads: hidden vectors, a class for each text, a class for each token."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from ltc_textgen import LiquidTimeConstantNetwork
from ltc_textgen.errors import UsageError
from ltc_textgen.hf.config import LTCConfig
from ltc_textgen.hf.tasks import LTCForSequenceClassification, LTCForTokenClassification, LTCModel

IDS = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))
SETTINGS = {"hidden_size": 8, "num_layers": 2, "coupling": "diagonal", "block": "liquid"}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[LiquidTimeConstantNetwork, Path]:
    torch.manual_seed(0)
    model = LiquidTimeConstantNetwork(11, **SETTINGS).eval()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_vectors_are_those_of_the_language_model(tmp_path: Path, tied: bool) -> None:
    model = LiquidTimeConstantNetwork(11, **SETTINGS, tie_embeddings=tied).eval()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is LTCModel
    assert not any(name.startswith("lm_head") for name in base.state_dict())
    output = base(IDS, output_hidden_states=True)
    assert_close(output.last_hidden_state, model.advance(IDS)[0])
    assert len(output.hidden_states) == 3
    assert base(IDS, return_dict=False)


def test_a_text_is_classified_by_its_last_token(saved: tuple[LiquidTimeConstantNetwork, Path]) -> None:
    model, path = saved
    classifier = AutoModelForSequenceClassification.from_pretrained(path, num_labels=4).eval()
    assert type(classifier) is LTCForSequenceClassification
    hidden = model.advance(IDS)[0]
    assert_close(classifier(IDS).logits, classifier.score(hidden[:, -1]))
    for side in (0, 2):  # padding on the left, and on the right
        padded = torch.nn.functional.pad(IDS, (2 - side, side))
        mask = torch.nn.functional.pad(torch.ones_like(IDS), (2 - side, side))
        assert_close(classifier(padded, mask).logits, classifier(IDS).logits)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (torch.tensor([0, 3, 1]), "single_label_classification"),
        (torch.rand(3, 4).round(), "multi_label_classification"),
        (torch.randn(3, 4), "regression"),
    ],
)
def test_losses_train_the_whole_network(labels: torch.Tensor, problem: str) -> None:
    config = LTCConfig(input_size=11, **SETTINGS, num_labels=4, problem_type=problem)
    classifier = LTCForSequenceClassification(config)
    optimizer = torch.optim.AdamW(classifier.parameters(), 0.02)
    losses = []
    for _ in range(20):
        loss = classifier(IDS, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert classifier.embed_tokens.weight.grad.abs().sum() > 0


def test_tokens_are_classified_one_by_one(saved: tuple[LiquidTimeConstantNetwork, Path], tmp_path: Path) -> None:
    model, path = saved
    tagger = AutoModelForTokenClassification.from_pretrained(path, num_labels=3).eval()
    assert type(tagger) is LTCForTokenClassification
    assert_close(tagger(IDS).logits, tagger.score(model.advance(IDS)[0]))
    labels = torch.randint(3, IDS.shape).masked_fill(IDS == 0, -100)
    expected = torch.nn.functional.cross_entropy(tagger(IDS).logits.flatten(0, 1), labels.flatten())
    assert_close(tagger(IDS, labels=labels).loss, expected)
    tagger.save_pretrained(tmp_path / "tagger")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "tagger").eval()
    assert_close(again(IDS).logits, tagger(IDS).logits)


def test_unknown_arguments_are_rejected_and_nothing_is_generated() -> None:
    base = LTCModel(LTCConfig(input_size=11, **SETTINGS))
    with pytest.raises(UsageError):
        base(IDS, colour=1)
    assert not base.can_generate()


def test_weights_load_with_another_solver(saved: tuple[LiquidTimeConstantNetwork, Path]) -> None:
    model, path = saved
    finer = LiquidTimeConstantNetwork.from_pretrained(path, solver="runge_kutta", steps=12, step_size=1 / 12)
    assert (finer.settings.solver, finer.settings.steps) == ("runge_kutta", 12)
    assert_close(finer.embed_tokens.weight, model.embed_tokens.weight)
    change = (finer(IDS).logits - model.eval()(IDS).logits).abs().max()
    assert 0 < change < 1
