"""From recipe file, presets, flags and `--set` to one `RunConfig`: later sources win.

defaults < preset < config file < flags and --set
"""

import json
import textwrap
import tomllib
from collections.abc import Container, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ltc_textgen.config import DataConfig, MemoryConfig, ModelConfig, TrainConfig, current_run_settings
from ltc_textgen.errors import UsageError
from ltc_textgen.io.checked import require_shallow
from ltc_textgen.settings import RENAMED, Settings, did_you_mean, shortened
from ltc_textgen.training.budget import LENGTHS, lengths

SECTIONS: Mapping[str, type[Settings]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "memory": MemoryConfig,
}
Recipe = dict[str, dict[str, Any]]


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(
        p.name.removesuffix(".toml") for p in files("ltc_textgen.presets").iterdir() if p.name.endswith(".toml")
    )


def preset_text(name: str) -> str:
    """The recipe file of a preset, with its comments.

    Raises:
        UsageError: If there is no preset of this name.
    """
    if name not in preset_names():
        raise UsageError(f"unknown preset '{name}'{did_you_mean(name, preset_names())}")
    return files("ltc_textgen.presets").joinpath(f"{name}.toml").read_text(encoding="utf-8")


def load_preset(name: str) -> Recipe:
    """A preset as a recipe."""
    return tomllib.loads(preset_text(name))


def load_file(path: Path) -> Recipe:
    """A recipe from a TOML file, or from the training.json of a run.

    Raises:
        UsageError: If the file cannot be read, is not of its format, or has an unknown section.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        require_shallow(content)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the config file {path}: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise UsageError(f"{path} is not {path.suffix.removeprefix('.') or 'toml'}: {str(error)[:200]}") from None
    recipe = content
    if isinstance(content, dict) and "run" in content:
        run = content["run"]
        recipe = current_run_settings(run) if isinstance(run, dict) else run
    if not isinstance(recipe, dict):
        raise UsageError(f"{path}: expected the sections {', '.join(SECTIONS)}, got {type(recipe).__name__}")
    for section, values in recipe.items():
        if section not in SECTIONS:
            raise UsageError(f"{path}: unknown section '{shortened(section)}'{did_you_mean(section, list(SECTIONS))}")
        if not isinstance(values, dict):
            raise UsageError(f"{path}: {section} must be a table of keys, got {shortened(repr(values))}")
    return recipe


def assignments(texts: Iterable[str]) -> Recipe:
    """The recipe of the `--set key=value` options.

    A key is a name of `config` ("learning_rate"), with or without its section ("train.learning_rate"), and may go
    deeper ("wiring.kind"). A value is a TOML value, or else a text.
    """
    recipe: Recipe = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {shortened(repr(text))}: expected key=value")
        section, *path = _locate(key.strip())
        place: dict[str, Any] = recipe.setdefault(section, {})
        for name in path[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UsageError(f"--set {shortened(text)}: {name} has a value by another --set, and no keys")
        place[path[-1]] = _value(value.strip())
    return recipe


def _locate(key: str) -> list[str]:
    path = key.split(".")
    if path[0] in SECTIONS and len(path) > 1:
        return path
    for section, settings in SECTIONS.items():
        if path[0] in settings.model_fields:
            return [section, *path]
    known = [name for settings in SECTIONS.values() for name in settings.model_fields]
    if RENAMED.get(path[0]) in known:
        raise UsageError(f"--set: {path[0]} is now called {RENAMED[path[0]]}")
    raise UsageError(f"--set: unknown key '{shortened(key)}'{did_you_mean(path[0], known)}")


def _value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        require_shallow(value)
    except (ValueError, RecursionError):
        return text
    return value


def merge(*recipes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """Merge recipes; later ones win, key by key.

    Of epochs, max_steps and time_budget one sets the length of a run: a later recipe's one removes an earlier one's.

    Raises:
        UsageError: If one recipe sets two of them.
    """
    merged: Recipe = {}
    for recipe in recipes:
        if lengths(recipe.get("train", {})):
            merged["train"] = {k: v for k, v in merged.get("train", {}).items() if k not in LENGTHS}
        for section, values in recipe.items():
            _lay_over(merged.setdefault(section, {}), values)
    return merged


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = dict(value) if isinstance(value, Mapping) else value


EXPLICIT_STEPS = 6
"""Sub-steps of a token with an explicit solver, which is unstable where they are longer than the time constants."""


def same_token_time(below: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What follows from a user's solver or number of sub-steps over a preset, whose other settings were chosen for its
    own: a token is integrated over the same time in any number of sub-steps.

    Args:
        below: Settings of the model in the preset.
        own: Settings of the model that the user made.

    Returns:
        Further settings of the model, and what is to be said about them.
    """
    if "step_size" in own or not {"steps", "solver"} & own.keys():
        return {}, []
    default = {name: ModelConfig.model_fields[name].default for name in ("steps", "step_size")}
    before = {**default, **below}
    steps = own.get("steps", before["steps"])
    explicit = str(own.get("solver", "")).replace("-", "_").lower() in ("explicit", "runge_kutta")
    if explicit and "steps" not in own and before["steps"] < EXPLICIT_STEPS:
        steps = EXPLICIT_STEPS
    if not isinstance(steps, int) or steps < 1 or steps == before["steps"]:
        return {}, []
    time = before["steps"] * before["step_size"]
    changes = {"steps": steps, "step_size": time / steps}
    reason = f"solver {own['solver']} needs short sub-steps" if "steps" not in own else "as you set"
    return changes, [
        f"steps {before['steps']} -> {steps} ({reason}), step_size {before['step_size']:g} -> {time / steps:.3g}: a "
        f"token still takes {time:g}; set both to choose otherwise"
    ]


def choose_preset(corpus: str, tokenizer: str) -> str:
    """The preset for a corpus if the user names none.

    Args:
        corpus: Name of the corpus.
        tokenizer: Kind of its tokenizer.
    """
    if tokenizer in ("char", "byte"):
        return "char-fast"
    return "wikitext-2" if corpus == "wikitext-2" or tokenizer == "bert" else "embedded"


def shrunk(train: Mapping[str, Any], tokens: int, fixed: Container[str]) -> dict[str, int]:
    """What a preset's batch_size and sequence_length must become for a text too short for one window in each batch row.

    Shorter windows first, down to an eighth, then fewer rows: shorter windows train badly. A
    text shorter than such a window stays too short, and is rejected where it is cut into rows.

    Args:
        train: Training settings.
        tokens: Tokens of the training text.
        fixed: Names of settings that the user made; they stay.

    Returns:
        The settings that change, none if the text is long enough; a text may be too short for any.
    """
    rows, length = (
        train.get(name, TrainConfig.model_fields[name].default) for name in ("batch_size", "sequence_length")
    )
    if (tokens - 1) // length >= rows:
        return {}
    changes = {}
    if "sequence_length" not in fixed:
        least = 1 if "batch_size" in fixed else max(1, length // 8)
        room = (tokens - 1) // (rows if "batch_size" in fixed else 1)
        length = max(least, min(length, max(length // 8, (tokens - 1) // rows), room))
        changes["sequence_length"] = length
    if "batch_size" not in fixed and (tokens - 1) // length < rows:
        changes["batch_size"] = max(1, (tokens - 1) // length)
    return changes


def settings_table() -> str:
    """Every setting with its default and, below it, its meaning; lines of at most 80 columns."""
    lines = []
    for section, settings in SECTIONS.items():
        lines.append(f"[{section}]")
        for name, field in settings.model_fields.items():
            if (section, name) in (("model", "input_size"), ("model", "output_size")):
                continue  # from the tokenizer
            default = field.get_default(call_default_factory=True)
            lines.append(f"{name} = {'' if default is None else default}")
            indent = " " * 4
            lines += textwrap.wrap(field.description or "", 80, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)
