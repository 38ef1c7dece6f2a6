"""Settings that had other names in earlier versions."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

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


def with_current_names(values: Mapping[str, Any], settings: "type[BaseModel]") -> dict[str, Any]:
    """Settings that an earlier version wrote, under the names of today.

    Args:
        values: As in config.json or one group of training.json.
        settings: The class that they belong to.
    """
    fields = settings.model_fields
    return {RENAMED[k] if k not in fields and RENAMED.get(k) in fields else k: v for k, v in values.items()}
