"""From what the user set, and a preset below it, to the settings and the tokens of a run."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltc_textgen.cli.common import is_main_process
from ltc_textgen.config import DataConfig, RunConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.presets.recipes import Recipe, choose_preset, load_preset, merge, same_token_time, shrunk

if TYPE_CHECKING:
    from ltc_textgen.data.corpora import Corpus
    from ltc_textgen.data.token_cache import TokenData
    from ltc_textgen.training import Reporter

CHOSEN = "chosen"
"""In place of the name of a preset: the one that fits the corpus."""


def prepared(own: Recipe, preset: str | None, reporter: "Reporter") -> tuple[RunConfig, "TokenData"]:
    """The settings and the tokens of a run.

    Args:
        own: What the user set; it overrides any preset.
        preset: Name of a preset, CHOSEN, or auto for one that is sized for this run; None for no preset.
        reporter: Reports what was chosen, and what does not fit.

    Raises:
        UsageError: If the text is too short for the preset.
    """
    from ltc_textgen.data.corpora import load_corpus
    from ltc_textgen.data.token_cache import prepare

    name = None if preset in (None, CHOSEN, "auto") else preset
    below: Recipe = {} if name is None else load_preset(name)
    RunConfig.parse(merge(below, own))
    settings = DataConfig.parse(merge(below, own).get("data", {}))
    corpus = load_corpus(settings, reporter.note)
    if preset == CHOSEN:
        below = _chosen(corpus, settings, reporter.note)
    elif preset == "auto":
        below = _vocabulary(corpus, settings)
    recipe = merge(below, own)
    settings = DataConfig.parse(recipe.get("data", {}))
    data = prepare(settings, reporter.note, corpus=corpus, progress=reporter.tokenizing)
    if preset == "auto":
        recipe = merge(below, _sized(own, data, reporter.note), own)
    if preset is not None:
        changes, lines = same_token_time(below.get("model", {}), own.get("model", {}))
        recipe = merge(recipe, {"model": changes})
        for line in lines:
            reporter.note(line)
    if name is not None:
        _judge(name, recipe, own, data, reporter.note)
    elif preset is not None:
        recipe = _fitted(recipe, own, data, reporter.note)
    return RunConfig.parse({**recipe, "data": _resolved(settings, data)}), data


def _fitted(recipe: Recipe, own: Recipe, data: "TokenData", note: Callable[[str], None]) -> Recipe:
    """The recipe with windows, and if need be fewer batch rows, that a short text fills."""
    fitting = shrunk(recipe["train"], len(data.train), fixed=own.get("train", {}))
    if fitting:
        note(f"little text: {', '.join(f'{key} {value}' for key, value in fitting.items())}, to fit it")
    return merge(recipe, {"train": fitting})


def _kind(corpus: "Corpus", settings: DataConfig) -> str:
    from ltc_textgen.data.token_cache import find_tokenizer
    from ltc_textgen.data.tokenizers import KINDS

    kind = corpus.default_tokenizer() if settings.tokenizer == "auto" else settings.tokenizer
    return kind if kind in KINDS else find_tokenizer(kind).kind


def _chosen(corpus: "Corpus", settings: DataConfig, note: Callable[[str], None]) -> Recipe:
    kind = _kind(corpus, settings)
    name = choose_preset(corpus.name, kind)
    note(f"recipe: {name}, for {corpus.name} with {kind} tokens")
    preset = load_preset(name)
    # Corpus and tokenizer are chosen already: the preset's own are for those who ask for it by its name.
    preset["data"] = {k: v for k, v in preset["data"].items() if k not in ("data", "tokenizer")}
    return preset


def _vocabulary(corpus: "Corpus", settings: DataConfig) -> Recipe:
    """The vocabulary size that fits the text, where the tokenizer is trained."""
    from ltc_textgen.presets.auto import fitting_vocab_size

    size = corpus.size("train") if _kind(corpus, settings) == "wordpiece" else None
    return {"data": {"vocab_size": fitting_vocab_size(size)}} if size else {}


def _sized(own: Recipe, data: "TokenData", note: Callable[[str], None]) -> Recipe:
    from ltc_textgen.presets.auto import REFERENCE_SPEED, Job, measured_speed, size

    train = own.get("train", {})
    # Processes must not come to different sizes, so several of them measure nothing.
    speed = REFERENCE_SPEED if _several() else measured_speed(_device(train), train.get("threads"))
    job = Job(
        len(data.train),
        data.tokenizer.vocab_size,
        speed,
        train.get("time_budget"),
        train.get("max_steps"),
        train.get("epochs"),
    )
    recipe, lines = size(job)
    for line in lines:
        note(line)
    mine = [f"{key} = {value}" for part in ("model", "train") for key, value in own.get(part, {}).items()]
    if mine:
        note(f"auto: your settings stay: {', '.join(mine)}")
    return recipe


def _several() -> bool:
    return not is_main_process() or os.environ.get("WORLD_SIZE", "1") != "1"


def _device(train: Mapping[str, Any]) -> Any:
    from ltc_textgen.devices import choose_device

    return choose_device(train.get("device", "auto"))


def _judge(preset: str, recipe: Recipe, own: Recipe, data: "TokenData", note: Callable[[str], None]) -> None:
    """Validate that the text fills the windows of the settings, and report what does not fit.

    Raises:
        UsageError: If the text does not fill the preset's windows.
    """
    from ltc_textgen.presets.auto import misfits

    fitting = shrunk(recipe["train"], len(data.train), fixed=own.get("train", {}))
    if fitting:
        rows, length = recipe["train"]["batch_size"], recipe["train"]["sequence_length"]
        raise UsageError(
            f"preset {preset}: its {rows} batch rows of {length} tokens need more than the {len(data.train):,} tokens "
            "of the text: use --preset auto, or set " + " and ".join(f"{key}={value}" for key, value in fitting.items())
        )
    for line in misfits(preset, recipe["model"], len(data.train), data.tokenizer.vocab_size):
        note(line)


def _resolved(settings: DataConfig, data: "TokenData") -> Mapping[str, Any]:
    """The data settings, so that the run can be repeated: "auto" replaced by what was chosen, paths absolute."""
    from ltc_textgen.data.corpora import NAMES
    from ltc_textgen.data.tokenizers import KINDS
    from ltc_textgen.io.paths import user_path

    def absolute(name: str, names: Sequence[str]) -> str:
        path = user_path(name) if name not in names else None
        return name if path is None or not path.exists() else str(path.absolute())

    values = settings.model_dump()
    values["data"] = tuple(absolute(name, NAMES) for name in settings.sources)
    values["tokenizer"] = absolute(settings.tokenizer, ("auto", *KINDS))
    if settings.valid is not None:
        values["valid"] = absolute(settings.valid, ())
    if settings.data == "auto":
        values["data"] = data.corpus_name
    if settings.tokenizer == "auto":
        values["tokenizer"] = data.tokenizer.kind
    return values
