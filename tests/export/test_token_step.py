"""The single step: every coupling, solver, block and head as a graph; torch.export; a state that is not zero."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ltc_textgen.config import ModelConfig
from ltc_textgen.export import TokenStep, check, onnx_graph
from ltc_textgen.export.host.network import Network
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork

ABOUT = {"format": 2, "eos_token_id": 0, "vocab_size": 40, "tokenizer": "byte", "tokenizer_sha256": ""}


def network(**settings: object) -> LiquidTimeConstantNetwork:
    """A small network whose parameters have all left their initial values."""
    torch.manual_seed(0)
    made = LiquidTimeConstantNetwork.from_settings(
        ModelConfig.parse({"input_size": 40, "hidden_size": 16, "steps": 1, **settings}, "model")
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def as_onnx(made: LiquidTimeConstantNetwork, path: Path) -> Network:
    path.write_bytes(onnx_graph.build(TokenStep(made), ABOUT).SerializeToString())
    return Network(path)


WIRED = {"kind": "auto_ncp", "output_size": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"coupling": "full", "solver": "runge_kutta", "adaptive": False, "dropout": 0.5},
        {"coupling": "synaptic", "solver": "exponential", "wiring": WIRED, "num_layers": 2},
        {"coupling": "cfc", "wiring": WIRED, "block": "liquid"},
        {"coupling": "cfc", "cfc_mode": "pure"},
        {"coupling": "diagonal", "solver": "explicit", "step_size": 0.1, "steps": 2, "block": "liquid", "conv_width": 1}
        | {"head": "adaptive", "adaptive_cutoffs": (5, 20)},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values())[:40],
)
def test_every_coupling_is_a_graph_that_does_the_same(settings: dict[str, object], tmp_path: Path) -> None:
    made = network(**settings)
    exported = as_onnx(made.train(), tmp_path / "model.onnx")
    assert check.compare(made, exported, tokens=300) <= check.TOLERANCE
    assert exported.about["time_constants"] == [f"tau_{i}" for i in range(len(made.layers))]


@pytest.mark.slow
def test_tied_matrices_and_a_state_that_is_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(coupling="diagonal", block="liquid", tie_embeddings=True, solver="exponential", contractive=True)
    rest = made.initial_state(1).map(lambda tensor: torch.randn_like(tensor))
    monkeypatch.setattr(made, "initial_state", lambda batch: rest.map(lambda t: t.expand(batch, *t.shape[1:])))
    exported = as_onnx(made, tmp_path / "model.onnx")
    for name, tensor in rest.tensors().items():
        np.testing.assert_array_equal(exported.initial_state(2)[onnx_graph.host_name(name)][1], tensor[0].numpy())
    assert check.compare(made, exported, tokens=60) <= check.TOLERANCE
    tables = [t for t in onnx.load(tmp_path / "model.onnx").graph.initializer if list(t.dims) == [40, 16]]
    assert len(tables) == 1, "the shared matrix is there once"


@pytest.mark.slow
def test_torch_export_of_the_step(tmp_path: Path) -> None:
    made = network(coupling="diagonal", block="liquid")
    step = TokenStep(made)
    torch.export.save(onnx_graph.trace(step), tmp_path / "step.pt2")
    loaded = torch.export.load(tmp_path / "step.pt2").module()
    state = [value.expand(5, *value.shape) for value in step.initial.values()]
    for token in range(3):
        arguments = torch.tensor([token, 1, 2, 3, 39]), torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0])
        with torch.no_grad():
            ours, theirs = loaded(*arguments, *state), step(*arguments, *state)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)
        state = list(theirs[1 : 1 + len(state)])
