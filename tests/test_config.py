"""Settings say what is wrong, where, and what was meant."""

import pytest

from ltc_textgen.config import DataConfig, ModelConfig, RunConfig, SamplingConfig, Solver, TrainConfig, WiringConfig
from ltc_textgen.errors import UsageError


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
