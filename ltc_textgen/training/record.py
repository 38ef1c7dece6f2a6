"""progress.json of a checkpoint: validated before anything in it is used, since it may come from a stranger."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltc_textgen.errors import ArtifactError
from ltc_textgen.training.progress import Progress
from ltc_textgen.training.random_states import RandomStates


class Record(BaseModel):
    """What progress.json holds.

    Args:
        identity: What a resumed run must have in common with this one (`resume.identity`).
        train: Settings of the training.
        threads: CPU threads.
        progress: Counters (`Progress`, which validates them).
        random: Generators of each process, by rank.
        scaler: State of the loss scaler, in fp16.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    identity: dict[str, Any]
    train: dict[str, Any]
    threads: Annotated[int, Field(ge=1, le=1_000_000)]
    progress: dict[str, Any]
    random: Annotated[list[RandomStates], Field(max_length=65_536)]
    scaler: dict[str, Any] | None = None


def check_record(content: dict[str, Any], checkpoint: Path) -> None:
    """Validate the content of progress.json.

    Args:
        content: Of the file.
        checkpoint: The directory that it is in, which is named after its step.

    Raises:
        ArtifactError: If a part is missing or is not what it must be; the message names it.
    """
    try:
        Record.model_validate(content)
        step = Progress.from_dict(content["progress"]).step
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise ArtifactError(f"{checkpoint}: progress.json: {name}: {problem['msg']}") from None
    except ArtifactError as error:
        raise ArtifactError(f"{checkpoint}: progress.json: {error}") from None
    if checkpoint.name != f"step-{step:08d}":
        raise ArtifactError(f"{checkpoint}: progress.json: it is of step {step}")
