"""The memory of a run: a file beside its weights."""

from collections.abc import Mapping
from pathlib import Path

from ltc_textgen.errors import ArtifactError
from ltc_textgen.memory.mixture import Mixture

MEMORY = "memory.safetensors"


def save_memory(directory: Path, mixture: Mixture, tokenizer: str, facts: Mapping[str, str]) -> None:
    """Write the memory of a run.

    Args:
        directory: Run directory.
        mixture: Counts and weights.
        tokenizer: Fingerprint of the tokenizer whose ids were counted.
        facts: Further strings for the header: what was counted, and how well it predicts.

    Raises:
        LTCError: If the file cannot be written.
    """
    mixture.save(directory / MEMORY, {**facts, "tokenizer": tokenizer})


def load_memory(directory: Path, tokenizer: str, vocab_size: int) -> tuple[Mixture, dict[str, str]] | None:
    """The memory of a run with the strings of its header; None if it has none.

    Args:
        directory: Run directory.
        tokenizer: Fingerprint of the run's tokenizer.
        vocab_size: Tokens that its network predicts.

    Raises:
        ArtifactError: If the file is damaged, or of another tokenizer.
        UsageError: If the package was built without the compiled kernels.
    """
    path = directory / MEMORY
    if not path.exists():
        return None
    mixture, header = Mixture.load(path)
    if header.get("tokenizer") != tokenizer or mixture.memory.vocab_size != vocab_size:
        raise ArtifactError(f"{path} counts the tokens of another tokenizer; remove it, or train again")
    return mixture, header
