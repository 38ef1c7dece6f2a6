"""Settings say what is wrong, where, and what was meant."""

import pytest

from ltc_textgen.config import DataConfig, ModelConfig, RunConfig, SamplingConfig, Solver, TrainConfig, WiringConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.layers import build_wiring

WIRED = {"coupling": "cfc", "wiring": {"kind": "auto_ncp", "output_size": 3}}


@pytest.mark.parametrize("name", ["SemiImplicit", "semi_implicit", "semi-implicit", "SEMI_IMPLICIT"])
def test_solver_names_in_any_spelling(name: str) -> None:
    assert ModelConfig.parse({"input_size": 5, "solver": name}).solver is Solver.semi_implicit


@pytest.mark.parametrize("settings", [DataConfig, ModelConfig, TrainConfig, SamplingConfig, WiringConfig])
def test_every_setting_is_described(settings: type) -> None:
    for name, field in settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith((".", ")")), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden_size": 3}, "'hidden_size'"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"step_size": -1.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"solver": "rk9"}, "solver"),
        ({"coupling": "synaptic", "wiring": {"kid": 3}}, "'wiring.kid'"),
        ({"coupling": "synaptic", "wiring": {"kind": "auto_ncp"}}, "output_size"),
        ({"wiring": {}}, "coupling"),
        ({"tie_embeddings": True, "output_size": 3}, "3 and 5"),
        ({"head": "adaptive", "hidden_size": 8}, "hidden_size >= 16"),
        ({"adaptive_cutoffs": (4, 2)}, "adaptive_cutoffs"),
        ({"adaptive_cutoffs": (2, 4)}, "adaptive_cutoffs = (2, 4)"),
        ({"cfc_mode": "pure"}, "cfc_mode = pure"),
        ({"cfc_backbone_units": 9}, "cfc_backbone_units = 9"),
        ({"coupling": "full", "cfc_backbone_layers": 0}, "cfc_backbone_layers = 0"),
        ({**WIRED, "cfc_backbone_layers": 2}, "cfc_backbone_layers = 2"),
        (
            {"coupling": "cfc", "cfc_backbone_layers": 0, "cfc_backbone_units": 9},
            "cfc_backbone_units = 9 has no effect: it needs cfc_backbone_layers >= 1",
        ),
        ({"expansion": 3.0}, "expansion = 3.0"),
        ({"conv_width": 1, "block": "plain"}, "conv_width = 1"),
        (
            {"coupling": "synaptic", "wiring": {"sparsity": 0.3}},
            "wiring: sparsity = 0.3 has no effect: it needs kind = random or auto_ncp",
        ),
        (
            {"coupling": "synaptic", "wiring": {"kind": "random", "self_connections": False}},
            "self_connections = False has no effect: it needs kind = fully_connected",
        ),
        (
            {"coupling": "synaptic", "wiring": {"kind": "random", "motor_fanin": 3}},
            "motor_fanin = 3 has no effect: it needs kind = ncp",
        ),
        (
            {"coupling": "cfc", "wiring": {"kind": "auto_ncp", "output_size": 3, "sparsity": 0.05}},
            "an auto_ncp wiring needs a sparsity of at least 0.1, got 0.05",
        ),
    ],
)
def test_model_settings_are_rejected_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(UsageError) as error:
        ModelConfig.parse({"input_size": 5, **values}, "recipe.toml")
    text = str(error.value)
    assert message in text
    assert text.startswith("recipe.toml: ")
    assert "\n" not in text


def test_the_vocabulary_of_a_run_comes_from_its_tokenizer() -> None:
    with pytest.raises(UsageError, match=r"model\.input_size"):
        RunConfig.parse({"model": {"input_size": 7}})
    assert RunConfig.parse({"model": {"hidden_size": 7}}).model_config_for(65).input_size == 65


def test_a_run_is_the_same_after_a_round_trip_through_json() -> None:
    run = RunConfig.parse({"model": {"coupling": "diagonal", "block": "liquid"}, "train": {"time_budget": 80.0}})
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


def test_a_run_rejects_bad_model_settings_before_the_data_is_read() -> None:
    with pytest.raises(UsageError, match="'num_layers'"):
        RunConfig.parse({"model": {"num_layer": 7}})


@pytest.mark.parametrize("values", [{}, WIRED, {"coupling": "diagonal", "block": "liquid", "conv_width": 1}])
def test_settings_that_are_all_written_out_load_again(values: dict) -> None:
    """Also those that have no effect, as long as they are at their defaults."""
    settings = ModelConfig(input_size=5, **values)
    assert ModelConfig.parse(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("sparsity", [0.1, 0.95])
def test_every_sparsity_that_is_accepted_can_be_wired(sparsity: float) -> None:
    settings = WiringConfig(kind="auto_ncp", output_size=4, sparsity=sparsity)
    assert build_wiring(settings, 6, 20).synapse_count > 0
