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
        ({"hiden_size": 3}, "unknown key 'hiden_size' (did you mean 'hidden_size'?)"),
        ({"hidden_size": 0}, "hidden_size: input should be greater than or equal to 1, got 0"),
        ({"hidden_size": "wide"}, "hidden_size: input should be a valid integer"),
        ({"step_size": -1.0}, "step_size: input should be greater than 0, got -1.0"),
        ({"step_size": float("nan")}, "step_size: input should be a finite number"),
        ({"dropout": 1.0}, "dropout: input should be less than 1, got 1.0"),
        ({"solver": "rk9"}, "solver: input should be 'semi_implicit', 'explicit', 'runge_kutta' or 'exponential'"),
        ({"coupling": "synaptic", "wiring": {"kid": 3}}, "unknown key 'wiring.kid' (did you mean 'kind'?)"),
        ({"coupling": "synaptic", "wiring": {"kind": "auto_ncp"}}, "an auto_ncp wiring needs output_size"),
        ({"wiring": {}}, "wiring goes with coupling = synaptic or cfc, not full"),
        ({"tie_embeddings": True, "output_size": 3}, "tie_embeddings needs output_size = input_size, got 3 and 5"),
        ({"head": "adaptive", "hidden_size": 8}, "an adaptive head of 2 clusters needs hidden_size >= 16, got 8"),
        ({"adaptive_cutoffs": (4, 2)}, "adaptive_cutoffs must increase"),
        ({"adaptive_cutoffs": (2, 4)}, "adaptive_cutoffs = (2, 4) has no effect: it needs head = adaptive"),
        ({"cfc_mode": "pure"}, "cfc_mode = pure has no effect: it needs coupling = cfc"),
        ({"cfc_backbone_units": 9}, "cfc_backbone_units = 9 has no effect: it needs coupling = cfc"),
        ({"coupling": "full", "cfc_backbone_layers": 0}, "cfc_backbone_layers = 0 has no effect: it needs coupling"),
        ({**WIRED, "cfc_backbone_layers": 2}, "cfc_backbone_layers = 2 has no effect: it needs a cfc without wiring"),
        (
            {"coupling": "cfc", "cfc_backbone_layers": 0, "cfc_backbone_units": 9},
            "cfc_backbone_units = 9 has no effect: it needs cfc_backbone_layers >= 1",
        ),
        ({"expansion": 3.0}, "expansion = 3.0 has no effect: it needs block = liquid"),
        ({"conv_width": 1, "block": "plain"}, "conv_width = 1 has no effect: it needs block = liquid"),
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
def test_model_settings_are_refused_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(UsageError) as error:
        ModelConfig.parse({"input_size": 5, **values}, "recipe.toml")
    text = str(error.value)
    assert message in text
    assert text.startswith("recipe.toml: ")
    assert "\n" not in text


def test_the_vocabulary_of_a_run_comes_from_its_tokenizer() -> None:
    with pytest.raises(UsageError, match=r"model\.input_size comes from the tokenizer"):
        RunConfig.parse({"model": {"input_size": 7}})
    assert RunConfig.parse({"model": {"hidden_size": 7}}).model_config_for(65).input_size == 65


def test_a_run_is_the_same_after_a_round_trip_through_json() -> None:
    run = RunConfig.parse({"model": {"coupling": "diagonal", "block": "liquid"}, "train": {"time_budget": 80.0}})
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


def test_a_run_refuses_bad_model_settings_before_the_data_is_read() -> None:
    with pytest.raises(UsageError, match="did you mean 'num_layers'"):
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
