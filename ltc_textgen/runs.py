"""The run directory: files that are written atomically, and validated when they are loaded.

    RUN/config.json            the model (transformers format)
    RUN/generation_config.json ids that begin and end a text
    RUN/tokenizer.json ...     the tokenizer
    RUN/model.safetensors      the best weights so far; its header holds a checksum of the tensors, and fingerprints of
                               the configuration and the tokenizer of these weights
    RUN/memory.safetensors     the n-gram memory of the training text, if there is one (see `memory`)
    RUN/training.json          every setting, and facts on corpus and result
    RUN/metrics.jsonl          the loss curve
    RUN/checkpoints/           what a resumed run needs (see `training.checkpoint`)

The checksum is inside the weights file, so that one rename replaces both. A directory that `save_pretrained`
wrote loads too; it has no checksum to check.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltc_textgen.config import ModelConfig, RunConfig, current_run_settings
from ltc_textgen.errors import ArtifactError, DataError, LTCError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.io.checked import read_json, read_tensors, write_json
from ltc_textgen.io.hashing import digest as digest
from ltc_textgen.io.hashing import fingerprint as fingerprint
from ltc_textgen.io.hashing import own_tensors as own_tensors
from ltc_textgen.io.output import one_line
from ltc_textgen.io.paths import run_path
from ltc_textgen.io.tensor_names import current_names
from ltc_textgen.model.size import require_numbers
from ltc_textgen.settings import with_current_names

if TYPE_CHECKING:
    import torch

    from ltc_textgen.data.tokenizers import TextTokenizer
    from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
    from ltc_textgen.memory import Mixture
    from ltc_textgen.model.network import LiquidNetwork

FORMAT = "1"
WEIGHTS = "model.safetensors"
USUAL_KEYS = frozenset({"model_type", "transformers_version", "architectures", "dtype", "auto_map"})
"""Keys besides the settings in what `save_run`, `save_pretrained` and `save_for_hub` write. Only where there are others
is transformers imported, which takes seconds, to validate them."""


@dataclass(frozen=True)
class Run:
    """A loaded run directory.

    Args:
        path: The directory.
        network: The network in PyTorch alone, in evaluation mode.
        tokenizer: Its tokenizer.
        config: The settings of the run; None without a training.json.
        facts: What training.json says besides the settings.
    """

    path: Path
    network: "LiquidNetwork"
    tokenizer: "TextTokenizer"
    config: RunConfig | None
    facts: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> "LiquidTimeConstantNetwork":
        """The network as a transformers model, with the same weights; its first use imports transformers.

        Raises:
            ArtifactError: If generation_config.json has a value that transformers rejects.
        """
        from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork

        model = LiquidTimeConstantNetwork.sharing(self.network)
        model.run_directory, path = self.path, self.path / "generation_config.json"
        if path.exists():
            try:
                model.generation_config.update(**read_json(path))
            except (TypeError, ValueError) as error:
                raise ArtifactError(f"{path}: {one_line(error)}") from None
        return model


def memory_of(run: Run) -> "Mixture | None":
    """The n-gram memory of a run, with the weights that mix it with the network; None if it has none.

    Raises:
        ArtifactError: If its file is damaged, or counts the tokens of another tokenizer.
        UsageError: If the package was built without the compiled kernels.
    """
    from ltc_textgen.memory import load_memory

    found = load_memory(run.path, run.tokenizer.fingerprint, run.tokenizer.vocab_size)
    return None if found is None else found[0]


def save_run(
    directory: Path,
    model: "LiquidTimeConstantNetwork",
    tokenizer: "TextTokenizer",
    run: RunConfig,
    facts: Mapping[str, Any],
) -> None:
    """Write everything that `load_run` needs but the weights, which `save_weights` writes."""
    from ltc_textgen.hf.sharing import write_remote_code

    directory.mkdir(parents=True, exist_ok=True)
    save_facts(directory, run, facts)  # first: it marks the directory as a run's, should the rest not be written
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    model.generation_config.update(**ids)
    # `trust_remote_code=True` then loads the directory without `import ltc_textgen`.
    write_remote_code(directory, model.config.to_json_string())
    write_atomic(directory / "generation_config.json", model.generation_config.to_json_string())
    tokenizer.save(directory)


def save_facts(directory: Path, run: RunConfig, facts: Mapping[str, Any]) -> None:
    """Write training.json: the settings of the run and what is known of its corpus and result."""
    write_json(
        directory / "training.json", {"format": FORMAT, "run": run.model_dump(mode="json"), "facts": dict(facts)}
    )


def save_weights(path: Path, model: "LiquidNetwork", fingerprints: Mapping[str, str]) -> None:
    """Write the weights with their checksum and `fingerprints` ("tokenizer", ...) in the header, atomically.

    Args:
        path: A .safetensors file.
        model: Whose weights.
        fingerprints: Further header fields; values are strings.

    Raises:
        LTCError: If a weight is not finite: nothing broken is saved.
    """
    from safetensors.torch import save

    weights = own_tensors(model)
    broken = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise LTCError(f"not saved: {broken[0]} holds numbers that are not finite")
    header = {"format": "pt", "sha256": digest(weights), "settings": fingerprint(model.settings), **fingerprints}
    write_atomic(path, save(weights, metadata=header))


def load_weights(path: Path, model: "LiquidNetwork") -> dict[str, str]:
    """Load weights into `model` and return the file's header fields.

    Raises:
        ArtifactError: If the file is missing, pickled, truncated, altered, or of another model; the message says which.
    """
    tensors, header = read_tensors(path)
    if "sha256" in header and digest(tensors) != header["sha256"]:
        raise ArtifactError(f"{path} is damaged: its checksum does not match its tensors")
    if header.get("settings", own := fingerprint(model.settings)) != own:
        raise ArtifactError(f"{path} does not fit config.json: the weights were saved with another configuration")
    tensors, expected = current_names(tensors), own_tensors(model)
    for problem, names in (("lacks", expected.keys() - tensors.keys()), ("has", tensors.keys() - expected.keys())):
        if names:
            unknown = "" if problem == "lacks" else ", which the configuration does not know"
            raise ArtifactError(f"{path} does not fit the configuration: it {problem} {min(names)}{unknown}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"expected {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
            raise ArtifactError(f"{path} does not fit the configuration: {name}: {shapes}")
    model.load_state_dict(tensors, strict=False)  # in place, so that what was tied stays tied
    return header


def load_settings(directory: Path) -> ModelConfig:
    """The model's settings from config.json.

    Raises:
        ArtifactError: If a key is unknown, a value out of range, or the model is of another type.
    """
    path = directory / "config.json"
    content = read_json(path)
    if content.get("model_type") != "ltc":
        raise ArtifactError(f"{path}: model_type is {content.get('model_type')!r}, expected 'ltc'")
    content = with_current_names(content, ModelConfig)
    try:
        if not content.keys() <= USUAL_KEYS | ModelConfig.model_fields.keys():
            from ltc_textgen.hf.config import LTCConfig

            LTCConfig.reject_unknown(content, str(path))
        return ModelConfig.parse({k: v for k, v in content.items() if k in ModelConfig.model_fields}, str(path))
    except LTCError as error:
        raise ArtifactError(str(error)) from None


def load_run(path: Path | str, device: "torch.device | str" = "cpu") -> Run:
    """Load a run directory: network (in evaluation mode), tokenizer, settings. It needs nothing else.

    Raises:
        ArtifactError: If anything in it is missing, damaged, unsafe or does not fit the rest; the message names it.
    """
    from ltc_textgen.data.tokenizers import TextTokenizer
    from ltc_textgen.model.network import LiquidNetwork

    directory = run_path(path)
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is not a directory: train one with `ltc train --out {directory}`")
    settings = load_settings(directory)
    try:
        tokenizer = TextTokenizer.load(directory)
    except DataError as error:
        raise ArtifactError(str(error)) from None
    if tokenizer.vocab_size != settings.input_size:
        sizes = f"{tokenizer.vocab_size} tokens, the model knows {settings.input_size}"
        raise ArtifactError(f"{directory}: the tokenizer does not fit the model: it has {sizes}")
    if not (directory / WEIGHTS).is_file():
        read_tensors(directory / WEIGHTS)  # raises, before a network of any size is built
    require_numbers(directory / WEIGHTS, settings)
    network = LiquidNetwork(settings)
    header = load_weights(directory / WEIGHTS, network)
    if header.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise ArtifactError(f"{directory}: tokenizer.json is not the one that {WEIGHTS} was trained with")
    if (generation := directory / "generation_config.json").exists():
        read_json(generation)
    config, facts = load_facts(directory / "training.json")
    documents = facts.get("documents")
    tokenizer.choose_start(documents if isinstance(documents, int) else None)
    network.tokenizer = tokenizer
    return Run(directory, network.to(device).eval(), tokenizer, config, facts)


def load_facts(path: Path) -> tuple[RunConfig | None, dict[str, Any]]:
    """The settings of a run, and what is known of its corpus and result; None and nothing without a training.json.

    Raises:
        ArtifactError: If the file is damaged.
    """
    if not path.exists():
        return None, {}
    content = read_json(path)
    facts, settings = content.get("facts", {}), content.get("run", {})
    if not isinstance(settings, dict) or not isinstance(facts, dict):
        raise ArtifactError(f"{path} is damaged: run and facts must be JSON objects")
    try:
        return RunConfig.parse(current_run_settings(settings), str(path)), facts
    except LTCError as error:
        raise ArtifactError(str(error)) from None
