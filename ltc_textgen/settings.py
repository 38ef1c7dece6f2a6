"""What all settings have in common: frozen, validated, an error in one line, and the names of earlier versions."""

import difflib
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ltc_textgen.errors import UsageError

RENAMED: Mapping[str, str] = {
    "accumulate": "gradient_accumulation_steps",
    "clip": "max_grad_norm",
    "eval_every": "eval_steps",
    "ignore_separator": "ignore_eos",
    "keep_last": "save_total_limit",
    "learned_start": "learned_initial_state",
    "precision": "mixed_precision",
    "restart": "state_reset_prob",
    "save_every": "save_steps",
    "track": "report_to",
    "vocabulary_size": "vocab_size",
    "warmup": "warmup_ratio",
}
"""Settings of earlier versions -> their names today. Files of earlier versions load; a user gets the new name."""

AnySettings = TypeVar("AnySettings", bound="Settings")


class Settings(BaseModel):
    """Base: frozen, no unknown keys, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls: type[AnySettings], values: dict[str, Any], where: str = "") -> AnySettings:
        """Validate `values`.

        Args:
            values: Keys and values, as from a file or the command line.
            where: What to name in an error: a file, a flag.

        Raises:
            UsageError: One line that names the key, what is wrong, and the nearest known key for an unknown one.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            problems = [cls._explain(dict(problem), where) for problem in error.errors()]
            raise UsageError("; ".join(problems[:MOST_PROBLEMS])) from None

    def reject_idle(self, names: Collection[str], needs: str) -> None:
        """Reject values that would do nothing. Defaults pass: a file that holds every setting must load again.

        Args:
            names: Settings that have no effect as things are.
            needs: What would give them one, as the end of "needs ...".

        Raises:
            ValueError: If one of them is not at its default.
        """
        for name in names:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{name} = {value} has no effect: it needs {needs}")

    @classmethod
    def _explain(cls, problem: dict[str, Any], where: str) -> str:
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path)
        prefix = f"{where}: " if where else ""
        if problem["type"] == "extra_forbidden":
            known = cls._known(path[:-1])
            if RENAMED.get(path[-1]) in known:
                return f"{prefix}{key} is now called {'.'.join([*path[:-1], RENAMED[path[-1]]])}"
            return f"{prefix}unknown key '{shortened(key)}'{did_you_mean(path[-1], known)}"
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if key:
            message += f", got {shortened(repr(problem['input']))}"
        return shortened(f"{prefix}{key}: {message}" if key else f"{prefix}{message}", LONGEST_MESSAGE)

    @classmethod
    def _known(cls, path: list[str]) -> list[str]:
        fields = cls.model_fields
        for part in path:
            annotation = fields[part].annotation if part in fields else None
            options = getattr(annotation, "__args__", (annotation,))
            nested = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
            fields = nested.model_fields if nested else {}
        return list(fields)


LONGEST_VALUE, LONGEST_MESSAGE, MOST_PROBLEMS = 80, 400, 4
"""Characters of a value, and of an explanation, that a message shows; and how many explanations."""


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """The beginning of a text of more than `most` characters, which a message can hold."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def did_you_mean(word: str, known: list[str]) -> str:
    """A clause that ends an error about an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (known: {', '.join(sorted(known))})" if known else ""


class Names(StrEnum):
    """Names in any spelling: `SemiImplicit`, `semi-implicit` and `semi_implicit` are one."""

    @classmethod
    def _missing_(cls, value: object) -> "Names | None":
        wanted = str(value).replace("_", "").replace("-", "").lower()
        return next((member for member in cls if member.value.replace("_", "") == wanted), None)


def with_current_names(values: Mapping[str, Any], settings: "type[BaseModel]") -> dict[str, Any]:
    """Settings that an earlier version wrote, under the names of today.

    Args:
        values: As in config.json or one group of training.json.
        settings: Their class.
    """
    fields = settings.model_fields
    return {RENAMED[k] if k not in fields and RENAMED.get(k) in fields else k: v for k, v in values.items()}
