"""Recipes: every preset is valid, later sources win, one setting says how long a run is."""

from pathlib import Path

import numpy as np
import pytest

from ltc_textgen.config import RunConfig
from ltc_textgen.data.batches import Batches
from ltc_textgen.errors import UsageError
from ltc_textgen.presets import recipes


@pytest.mark.parametrize("name", recipes.preset_names())
def test_every_preset_is_valid_and_says_what_it_is_for(name: str) -> None:
    assert RunConfig.parse(recipes.load_preset(name), name)
    assert recipes.preset_text(name).startswith("# ")


def test_there_are_the_presets_that_the_documentation_names() -> None:
    assert {"char-fast", "char-best", "wikitext-2", "embedded", "paper"} <= set(recipes.preset_names())


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'charfast'.*'char-fast'"):
        recipes.load_preset("charfast")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=1e-3", {"train": {"learning_rate": 1e-3}}),
        ("train.learning_rate = 0.1", {"train": {"learning_rate": 0.1}}),
        ("solver=runge_kutta", {"model": {"solver": "runge_kutta"}}),
        ("wiring.kind=ncp", {"model": {"wiring": {"kind": "ncp"}}}),
        ("tie_embeddings=true", {"model": {"tie_embeddings": True}}),
        ("adaptive_cutoffs=[10, 20]", {"model": {"adaptive_cutoffs": [10, 20]}}),
        ("sample_prompt=a = b", {"train": {"sample_prompt": "a = b"}}),
    ],
)
def test_assignments(text: str, expected: dict) -> None:
    assert recipes.assignments([text]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat=1", "'learning_rat'.*'learning_rate'"),
        ("learning_rate", "expected key=value"),
        ("=3", "expected key=value"),
    ],
)
def test_bad_assignments(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipes.assignments([text])


def test_later_recipes_win_and_one_length_remains() -> None:
    preset = {"train": {"time_budget": 80.0, "batch_size": 4}, "model": {"wiring": {"kind": "random", "seed": 1}}}
    merged = recipes.merge(preset, {"train": {"max_steps": 3}}, {"model": {"wiring": {"seed": 2}}})
    assert merged["train"] == {"batch_size": 4, "max_steps": 3}
    assert merged["model"]["wiring"] == {"kind": "random", "seed": 2}
    assert preset["model"]["wiring"] == {"kind": "random", "seed": 1}, "the sources are left as they are"


def test_two_lengths_in_one_source_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="epochs.*time_budget"):
        recipes.merge({"train": {"epochs": 1, "time_budget": 3.0}})


def test_config_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[train]\nbatch_size = 3\n")
    assert recipes.load_file(path) == {"train": {"batch_size": 3}}
    path.write_text("[trian]\nbatch_size = 3\n")
    with pytest.raises(UsageError, match="'trian'.*'train'"):
        recipes.load_file(path)
    path.write_text("[train\n")
    with pytest.raises(UsageError, match="toml"):
        recipes.load_file(path)
    with pytest.raises(UsageError, match="none.toml"):
        recipes.load_file(tmp_path / "none.toml")


@pytest.mark.parametrize("content", ["[1, 2]", '{"run": []}', '"text"'])
def test_a_config_file_that_is_no_recipe(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"recipe.json.*(list|str)"):
        recipes.load_file(path)


def test_an_assignment_cannot_go_deeper_than_a_value() -> None:
    with pytest.raises(UsageError, match=r"--set wiring.kind=ncp: wiring has a value by another --set"):
        recipes.assignments(["wiring=3", "wiring.kind=ncp"])


@pytest.mark.parametrize(
    ("tokens", "fixed", "expected"),
    [
        (100_000, (), {}),
        (16 * 64 + 1, (), {}),
        (16 * 64, (), {"sequence_length": 63}),
        (65, (), {"sequence_length": 8, "batch_size": 8}),
        (9, (), {"sequence_length": 8, "batch_size": 1}),
        (200, ("sequence_length",), {"batch_size": 3}),
        (33, ("batch_size",), {"sequence_length": 2}),
        (200, ("batch_size", "sequence_length"), {}),
    ],
)
def test_a_short_text_shrinks_what_the_user_did_not_set(tokens: int, fixed: tuple[str, ...], expected: dict) -> None:
    train = {"batch_size": 16, "sequence_length": 64}
    assert recipes.shrunk(train, tokens, fixed) == expected
    if not fixed:
        Batches(np.zeros(tokens, np.uint16), **{**train, **expected})


@pytest.mark.parametrize(
    ("own", "steps", "size"),
    [
        ({"solver": "runge_kutta"}, 6, 1 / 6),
        ({"solver": "explicit"}, 6, 1 / 6),
        ({"solver": "runge_kutta", "steps": 2}, 2, 0.5),
        ({"steps": 6}, 6, 1 / 6),
        ({"steps": 4, "coupling": "full"}, 4, 0.25),
        ({"steps": 4, "step_size": 1.0}, None, None),
        ({"solver": "exponential"}, None, None),
        ({"hidden_size": 8}, None, None),
        ({"steps": "many"}, None, None),
    ],
)
def test_a_token_takes_the_same_time_in_any_number_of_sub_steps(own, steps, size) -> None:
    changes, lines = recipes.same_token_time(recipes.load_preset("char-fast")["model"], own)
    assert changes == ({} if steps is None else {"steps": steps, "step_size": pytest.approx(size)})
    assert len(lines) == (steps is not None)


def test_the_paper_is_a_full_recurrence_in_six_semi_implicit_steps() -> None:
    model = RunConfig.parse(recipes.load_preset("paper")).model_config_for(65)
    assert (model.coupling, model.solver, model.block) == ("full", "semi_implicit", "plain")
    assert (model.steps, model.steps * model.step_size) == (6, pytest.approx(1.0))
