"""A model goes out and comes in: what is uploaded beside the weights, and which files are never loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

from ltc_textgen.errors import ArtifactError, UsageError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.io.hashing import digest
from ltc_textgen.model_card import model_card

CODE = "modeling_ltc"
AUTO_MAP = {"AutoConfig": f"{CODE}.LTCConfig", "AutoModelForCausalLM": f"{CODE}.LiquidTimeConstantNetwork"}
WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Sharer:
    """Goes before `transformers.PreTrainedModel`.

    `push_to_hub`, and `save_pretrained(..., push_to_hub=True)`, are those of transformers; they upload our model card
    in place of the general one, the tokenizer, and the code that `trust_remote_code=True` needs.
    """

    run_directory: Path | None = None
    """Where `load_run` found the model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, from safetensors files alone: loading a pickle runs whatever its author put into it.

        Raises:
            ArtifactError: If there are pickled weights and no others, or the checksum in the file is not that of its
                tensors.
            UsageError: If pickles are asked for with `use_safetensors=False`.
        """
        if kwargs.get("use_safetensors") is False:
            raise UsageError("use_safetensors=False asks for pickled weights, which are refused: they can run any code")
        kwargs["use_safetensors"] = True
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
            if pretrained_model_name_or_path is not None:
                _refuse_damaged(pretrained_model_name_or_path, kwargs)
            return loaded
        except OSError as error:
            place = Path(str(pretrained_model_name_or_path))
            pickles = sorted(path.name for path in place.glob("*") if path.suffix in {".bin", ".pt", ".pth"})
            if pickles and not any(place.glob("*.safetensors")):
                advice = "convert them with safetensors.torch.save_file"
                raise ArtifactError(
                    f"{place} has no model.safetensors, only {pickles[0]}; pickled weights are refused: {advice}"
                ) from error
            raise

    def save_for_hub(self, directory: Path | str, repository: str | None = None, **kwargs: Any) -> None:
        """Write what `push_to_hub` would upload: `save_pretrained`, model card, tokenizer and code.

        Args:
            directory: Where to; it is made. A README.md there keeps its header and what is not ours.
            repository: Id under which the card says the model can be loaded; the directory's name if None.
            **kwargs: As in `save_pretrained`.

        Raises:
            LogitsError: If the weights are broken.
            LTCError: If a file cannot be written.
        """
        self.save_pretrained(directory, **kwargs)  # type: ignore[attr-defined]
        self._complete(Path(directory), repository or Path(directory).resolve().name)

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # The last step of both ways to push; transformers has put its card into the folder just before.
        self._complete(Path(working_dir), repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    def _complete(self, directory: Path, repository: str) -> None:
        origin = self.run_directory or Path(self.name_or_path or "none")  # type: ignore[attr-defined]
        readme, config = directory / "README.md", directory / "config.json"
        old = readme.read_text(encoding="utf-8") if readme.is_file() else None
        write_atomic(readme, model_card(self, repository, origin, old))
        content = json.loads(config.read_text(encoding="utf-8")) | {"auto_map": AUTO_MAP}
        write_atomic(config, json.dumps(content, indent=2, sort_keys=True) + "\n")
        write_atomic(directory / f"{CODE}.py", Path(__file__).with_name(f"{CODE}.py").read_text(encoding="utf-8"))
        if not (directory / "tokenizer.json").exists():
            self._save_tokenizer(directory, origin)

    def _save_tokenizer(self, directory: Path, origin: Path) -> None:
        tokenizer, size = getattr(self, "tokenizer", None), self.settings.input_size  # type: ignore[attr-defined]
        if tokenizer is not None and tokenizer.vocab_size == size:
            tokenizer.save(directory)
        elif tokenizer is None and all((origin / name).is_file() for name in TOKENIZER_FILES):
            for name in TOKENIZER_FILES:
                shutil.copyfile(origin / name, directory / name)


def _refuse_damaged(place: Any, options: dict[str, Any]) -> None:
    """Compare the weights with the checksum that `ltc train` wrote beside them; transformers reads over it."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    same = {name: options[name] for name in ("cache_dir", "revision", "subfolder") if options.get(name) is not None}
    # Several files (sharded by `save_pretrained`) have no checksum.
    path = cached_file(place, WEIGHTS, local_files_only=True, _raise_exceptions_for_missing_entries=False, **same)
    if path is None:
        return
    with safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get("sha256")
        if expected and digest({name: file.get_tensor(name) for name in file.keys()}) != expected:  # noqa: SIM118
            raise ArtifactError(f"{path} is damaged: its checksum does not match its tensors")
