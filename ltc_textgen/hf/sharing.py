"""Hub integration: model card, files alongside the weights, safetensors-only loading.

A model card has a header of metadata and a text. What this module writes stands between two marks and is replaced at
every upload; the header, and everything outside the marks, is the repository owner's and is kept.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ltc_textgen.errors import ArtifactError, LogitsError, UsageError
from ltc_textgen.io.atomic import write_atomic
from ltc_textgen.io.checked import open_tensors
from ltc_textgen.io.hashing import digest, own_tensors
from ltc_textgen.io.tensor_names import RENAMED
from ltc_textgen.memory import memory_facts
from ltc_textgen.model.blocks import evaluating
from ltc_textgen.model.quantiles import quantiles
from ltc_textgen.shapes import Int, Tensor

BEGIN = "<!-- written by ltc-textgen, and renewed with every upload: what you write outside of the marks stays -->"
END = "<!-- end of what ltc-textgen wrote -->"
GENERIC = "This model card has been automatically generated."
"""A sentence of the card that transformers uploads where there is none (seen in 5.23)."""

TAGS = ("liquid-time-constant-network", "recurrent", "ltc-textgen")
TOKENS = 128
"""Tokens that the model generates to measure its time constants."""


LOADING = """## How to use it

```sh
pip install ltc-textgen
```

```python
import ltc_textgen  # registers the network with transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repository}")
model = AutoModelForCausalLM.from_pretrained("{repository}")
ids = tokenizer("The", add_special_tokens=False, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=100, do_sample=True)[0]))
```

A program that does not import `ltc_textgen`, but has it installed, passes `trust_remote_code=True`.
On the command line:

```sh
hf download {repository} --local-dir runs/downloaded
ltc generate runs/downloaded --prompt "The"
```
"""

LICENCE = """## Licence

None is given here: it is for the owner to choose, and the licence of the text that the model was trained on may bear on
it. `license: ...` in the header of this file states one.
"""


def model_card(model: Any, repository: str, directory: Path | None = None, old: str | None = None) -> str:
    """A card as README.md.

    Args:
        model: A `LiquidTimeConstantNetwork`.
        repository: Id on the hub, as a reader loads it.
        directory: Run directory that the model was loaded from. Its training.json is used only if the weights are
            still those of the directory.
        old: The card there was: its header stays, missing fields are added, and text that is not ours is kept.

    Raises:
        LogitsError: If the weights are broken.
    """
    from huggingface_hub import ModelCard

    card = ModelCard(old if old and old.strip() else "---\n{}\n---\n", ignore_metadata_errors=True)
    data: Any = card.data
    data.library_name = data.library_name or "transformers"
    data.pipeline_tag = data.pipeline_tag or "text-generation"
    tags = data.tags or []
    data.tags = [*tags, *(tag for tag in TAGS if tag not in tags)]
    facts = training_facts(model, directory)
    body = _body(model, repository, facts, directory if facts else None, licensed=bool(data.license))
    text = card.text
    if BEGIN in text and END in text.split(BEGIN, 1)[1]:
        before, rest = text.split(BEGIN, 1)
        card.text = before + body + rest.split(END, 1)[1]
    elif not text.strip() or GENERIC in text:
        card.text = body + "\n"
    return str(card)


def training_facts(model: Any, directory: Path | None) -> dict[str, Any]:
    """What training.json says of the model's corpus and result; empty if it has learned since, or there is none."""
    if directory is None:
        return {}
    try:
        facts = json.loads((directory / "training.json").read_text(encoding="utf-8"))["facts"]
        with open_tensors(directory / "model.safetensors") as file:
            header = file.metadata() or {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return {}
    unchanged = header.get("sha256") == digest(own_tensors(model))
    return facts if unchanged and isinstance(facts, dict) else {}


@torch.no_grad()
def written(model: Any, tokens: int = TOKENS) -> Int[Tensor, "1 T"]:
    """A text that the model draws from itself, always the same: its first token, and `tokens` more.

    Raises:
        LogitsError: If the model's output is no distribution.
    """
    generator = torch.Generator().manual_seed(0)
    first = model.generation_config.bos_token_id
    ids, state = [first if isinstance(first, int) else 0], None
    for _ in range(tokens):
        last = torch.tensor([ids[-1:]], device=model.embed_tokens.weight.device)
        hidden, state = model.advance(last, state)
        logits = model.lm_head.logits(hidden[0, -1:])[0, : model.settings.input_size].float().cpu()
        if not bool(logits.isfinite().all()):
            raise LogitsError("the model's logits are NaN or infinite: its weights are broken, and are not shared")
        ids.append(int(torch.multinomial(logits.softmax(0), 1, generator=generator)))
    return torch.tensor([ids], device=model.embed_tokens.weight.device)


def _body(model: Any, repository: str, facts: dict[str, Any], directory: Path | None, *, licensed: bool) -> str:
    settings = model.settings
    layers = f"{settings.num_layers} {settings.block} layer{'s' if settings.num_layers > 1 else ''}"
    shape = f"{layers} of width {settings.hidden_size}, {settings.coupling} coupling, solver {settings.solver}"
    parts = [
        BEGIN,
        f"# {repository.split('/')[-1]}\n",
        f"A liquid time-constant network that models text: {shape} in {settings.steps} steps a token. What it has read "
        "is kept in a state of constant size, so that a token takes the same time and memory wherever it stands.\n",
        _table(("", ""), [*_size(model), *_record(facts), *_memory(directory)]),
        "" if facts else "There is no record of how these weights were trained.\n",
        _time_constants(model),
        LOADING.format(repository=repository),
        *([] if licensed else [LICENCE]),
        END,
    ]
    return "\n".join(part for part in parts if part)


def _size(model: Any) -> list[tuple[str, ...]]:
    state = sum(tensor.numel() for tensor in model.initial_state(1).tensors().values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        ("parameters", f"{parameters:,}"),
        ("vocabulary", f"{model.settings.input_size:,} tokens"),
        ("state", f"{state:,} numbers, whatever the length of the text"),
    ]


def _memory(directory: Path | None) -> list[tuple[str, ...]]:
    """A row on the n-gram memory that stays with the run: a repository holds the network alone."""
    found = None if directory is None else memory_facts(directory)
    if found is None:
        return []
    size = f"order {found['order']}, {found['bytes'] / 2**20:.1f} MB, in the run directory only"
    return [("n-gram memory", f"{size}; with it {found['mixed_loss']:.4f} nats per token")]


def _record(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows on corpus, loss and speed, where known."""
    rows: list[tuple[str, ...]] = []
    result = facts.get("result") or {}
    if corpus := facts.get("corpus"):
        path = Path(corpus)  # only the name: folders of the owner's machine are private
        name = path.name if path.is_absolute() or path.exists() else corpus
        rows.append(("corpus", f"{name}, {facts['train_tokens']:,} tokens" if "train_tokens" in facts else name))
    if "tokenizer" in facts:
        rows.append(("tokenizer", facts["tokenizer"]))
    loss, tokens = result.get("best_val_loss"), facts.get("valid_tokens", 0) - 1
    if loss is not None and tokens > 0:
        rows.append(("validation loss", f"{loss:.4f} nats per token, over {tokens:,} tokens"))
        rows.append(("perplexity", f"{math.exp(min(loss, 700.0)):.2f} per token"))
        if size := facts.get("valid_bytes"):
            rows.append(("bits per byte", f"{loss * tokens / math.log(2) / size:.4f}, over {size:,} bytes"))
        if words := facts.get("valid_words"):
            perplexity = math.exp(min(loss * tokens / words, 700.0))
            rows.append(("word perplexity", f"{perplexity:.2f}, over {words:,} words"))
    if "tokens_per_second" in result:
        pace = f"{result['tokens_per_second']:,.0f} tokens/s in {result['seconds']:,.0f} s"
        rows.append(("training", f"{result['step']:,} steps, {pace}"))
    return rows


def _time_constants(model: Any) -> str:
    """Quantiles of every layer, over neurons and the tokens of a text that the model writes."""
    with evaluating(model):
        ids = written(model)
        with torch.no_grad():
            layers = model.time_constants(ids)
    rows = []
    for number, tau in enumerate(layers):
        rows.append((str(number), *(f"{value:.2f}" for value in quantiles(tau))))
    head = ("layer", "shortest", "10 %", "median", "90 %", "longest")
    text = f"In tokens, over all neurons, while the model writes {ids.shape[1] - 1} tokens:"
    return f"## Time constants\n\n{text}\n\n{_table(head, rows)}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


CODE = "modeling_ltc"
AUTO_MAP = {"AutoConfig": f"{CODE}.LTCConfig", "AutoModelForCausalLM": f"{CODE}.LiquidTimeConstantNetwork"}
WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def loading_options(options: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `from_pretrained`: safetensors only, tensor names of earlier versions mapped.

    Raises:
        UsageError: If pickled weights are asked for with `use_safetensors=False`.
    """
    if options.get("use_safetensors") is False:
        raise UsageError("use_safetensors=False asks for pickled weights, which are rejected: they can run any code")
    names = {**RENAMED, **(options.get("key_mapping") or {})}
    return {**options, "use_safetensors": True, "key_mapping": names}


def explain_missing_weights(place: Path) -> None:
    """Say why a folder without safetensors weights is not loaded.

    Raises:
        ArtifactError: If the folder holds pickled weights and no others.
    """
    pickles = sorted(path.name for path in place.glob("*") if path.suffix in {".bin", ".pt", ".pth"})
    if pickles and not any(place.glob("*.safetensors")):
        advice = "convert them with safetensors.torch.save_file"
        raise ArtifactError(
            f"{place} has no model.safetensors, only {pickles[0]}; pickled weights are rejected: {advice}"
        )


def complete_upload(model: Any, directory: Path, repository: str) -> None:
    """Add to a saved model what a hub repository needs: model card, code for `trust_remote_code`, tokenizer.

    Args:
        model: A `LiquidTimeConstantNetwork`.
        directory: What `save_pretrained` wrote. A README.md there keeps its header and what is not ours.
        repository: Id under which the card says the model can be loaded.

    Raises:
        LogitsError: If the weights are broken.
        LTCError: If a file cannot be written.
    """
    origin = model.run_directory or Path(model.name_or_path or "none")
    readme = directory / "README.md"
    old = readme.read_text(encoding="utf-8") if readme.is_file() else None
    write_atomic(readme, model_card(model, repository, origin, old))
    write_remote_code(directory, (directory / "config.json").read_text(encoding="utf-8"))
    if not (directory / "tokenizer.json").exists():
        _save_tokenizer(model, directory, origin)


def write_remote_code(directory: Path, config: str) -> None:
    """Write a model's config.json, and the module next to it that `trust_remote_code=True` loads.

    Args:
        directory: Where to.
        config: The configuration as JSON.

    Raises:
        LTCError: If a file cannot be written.
    """
    write_atomic(directory / f"{CODE}.py", Path(__file__).with_name(f"{CODE}.py").read_text(encoding="utf-8"))
    # TRL reads the name of the class here; transformers leaves it out of a model that was not loaded or saved by it.
    content: dict[str, Any] = json.loads(config) | {"auto_map": AUTO_MAP}
    content["architectures"] = content.get("architectures") or [AUTO_MAP["AutoModelForCausalLM"].split(".")[1]]
    write_atomic(directory / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def _save_tokenizer(model: Any, directory: Path, origin: Path) -> None:
    tokenizer, size = model.tokenizer, model.settings.input_size
    if tokenizer is not None and tokenizer.vocab_size == size:
        tokenizer.save(directory)
    elif tokenizer is None and all((origin / name).is_file() for name in TOKENIZER_FILES):
        for name in TOKENIZER_FILES:
            shutil.copyfile(origin / name, directory / name)


def check_weights(place: Any, options: dict[str, Any]) -> None:
    """Compare weights with the checksum in their file, which transformers ignores.

    Raises:
        ArtifactError: If they differ.
    """
    from transformers.utils import cached_file

    same = {name: options[name] for name in ("cache_dir", "revision", "subfolder") if options.get(name) is not None}
    # Several files (sharded by `save_pretrained`) have no checksum.
    path = cached_file(place, WEIGHTS, local_files_only=True, _raise_exceptions_for_missing_entries=False, **same)
    if path is None:
        return
    with open_tensors(Path(path)) as file:
        expected = (file.metadata() or {}).get("sha256")
        if expected and digest({name: file.get_tensor(name) for name in file.keys()}) != expected:  # noqa: SIM118
            raise ArtifactError(f"{path} is damaged: its checksum does not match its tensors")
