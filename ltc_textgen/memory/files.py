"""The n-gram memory of a run: one file in the run directory."""

from collections.abc import Mapping
from pathlib import Path

from ltc_textgen.errors import ArtifactError
from ltc_textgen.io.checked import open_tensors
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


def memory_facts(directory: Path) -> dict[str, int | float] | None:
    """What the header of a run's memory says: size, and how well it predicts the validation text; None without one.

    The keys are those of `training.text_memory.MemoryResult`. The tables are not read.

    Raises:
        ArtifactError: If the file is damaged.
    """
    from safetensors import SafetensorError

    path = directory / MEMORY
    if not path.exists():
        return None
    try:
        with open_tensors(path, "np") as file:
            header = file.metadata() or {}
        whole = {name: int(header[name]) for name in ("order", "tokens", "bytes", "scored_tokens")}
        losses = {name: float(header[name]) for name in ("network_loss", "memory_loss", "mixed_loss")}
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or not a safetensors file: {error}") from None
    except KeyError as error:
        raise ArtifactError(f"{path} is no n-gram memory: its header lacks {error}") from None
    return {**whole, **losses}
