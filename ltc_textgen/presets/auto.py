"""`--preset auto`: a model and its training sized by the text, the vocabulary, the time and the machine.

The presets are the measured points (`ANCHORS`); this module interpolates between them and extrapolates beyond them.

* **Compute** decides the width: seconds times the speed of the machine, in seconds of the machine that the presets
  were tuned on. Between two anchors every number is interpolated over ln(compute); beyond them, and where there is one
  anchor, width follows compute**(2/7), which is the slope between char-fast and char-best (four times the compute, one
  and a half times the width): a wider model learns more per token and sees fewer of them.
* **Text** limits the width, to `ROOM` times that of the widest anchor for a text of its length, and half as much for an
  eighth of the text: more parameters would only overfit.
* **Dropout** grows by `DROPOUT_PER_HALVING` with every halving of the text at equal time, as it is then read twice as
  often, and shrinks likewise.
* **Learning rate** falls with the root of the width, as it does between the anchors.
* **Output layer, optimizer and all else** are those of the nearest anchor: characters, some thousand subword
  tokens, or tens of thousands, where a full softmax would cost more than all else.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ltc_textgen.config import ModelConfig
from ltc_textgen.kernels.matmul import linear
from ltc_textgen.presets.recipes import Recipe, load_preset, merge


@dataclass(frozen=True)
class Anchor:
    """A preset, and about how many tokens of training text it was made for."""

    preset: str
    tokens: int


ANCHORS = {
    "characters": (Anchor("char-fast", 1_000_000), Anchor("char-best", 1_000_000)),
    "subword tokens": (Anchor("embedded", 450_000),),
    "many subword tokens": (Anchor("wikitext-2", 2_500_000),),
}
"""By vocabulary, each in order of their time budgets."""

MOST_CHARACTERS, MOST_SUBWORDS = 1000, 16_384
"""Largest vocabularies that count as characters (or bytes), and as some thousand subword tokens."""

REFERENCE_SPEED = 510e9
"""`measured_speed` of the two cores that the presets' times are for."""

USED = 0.45
"""Fraction of `measured_speed` that training reaches, at 6 operations per parameter and token: 0.40 in char-fast, 0.55
in char-best."""

CROWDED = 20
"""Parameters per token of text above which a preset overfits; the presets' own texts have one to five."""

ROOM = 1.5
WIDTH_PER_COMPUTE = 2 / 7
DROPOUT_PER_HALVING = 0.12
MOST_DROPOUT = 0.4


@dataclass(frozen=True)
class Job:
    """What a run is sized for.

    Args:
        tokens: Tokens of the training text.
        vocabulary: Token ids.
        speed: Operations per second (`measured_speed`).
        seconds: Time budget; None if steps or epochs govern, or none of them is set.
        steps: Optimizer steps, if they govern.
        epochs: Passes over the text, if they govern.
    """

    tokens: int
    vocabulary: int
    speed: float = REFERENCE_SPEED
    seconds: float | None = None
    steps: int | None = None
    epochs: int | None = None


def measured_speed(device: torch.device, threads: int | None = None, seconds: float = 0.4) -> float:
    """Operations per second of the products that training consists of: the best measurement within `seconds`."""
    inputs, weight = torch.ones(1024, 256, device=device), torch.ones(768, 256, device=device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    best, end = math.inf, time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end or best == math.inf:
            start = time.perf_counter()
            float(linear(inputs, weight)[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * 1024 * 256 * 768 / max(best, 1e-9)


def fitting_vocab_size(text_bytes: int) -> int:
    """Tokens of a vocabulary to be trained on a text: 4096 for 2 MB, growing as the root of the size; a power of 2."""
    return 1 << min(14, max(9, round(math.log2(4096 * math.sqrt(text_bytes / 2e6)))))


def parameters(model: Mapping[str, Any], vocabulary: int) -> int:
    """Approximate number of parameters used per token: the four maps of every block, and the output layer."""
    width = model["hidden_size"]
    head = min(vocabulary, 4096) if model.get("head") == "adaptive" else vocabulary
    return round(4 * model["expansion"] * width * width * model["num_layers"] + head * width)


def family_of(vocabulary: int) -> str:
    """The key in `ANCHORS` for a vocabulary of this size."""
    return (
        "characters"
        if vocabulary <= MOST_CHARACTERS
        else "subword tokens"
        if vocabulary <= MOST_SUBWORDS
        else "many subword tokens"
    )


def misfits(preset: str, model: Mapping[str, Any], tokens: int, vocabulary: int) -> list[str]:
    """Why a preset does not fit a text, a line each, with what to use instead.

    Args:
        preset: Its name.
        model: Settings of the model, as the run will have them.
        tokens: Tokens of the training text.
        vocabulary: Token ids.
    """
    fits = family_of(vocabulary)
    made_for = [family for family, anchors in ANCHORS.items() if preset in [anchor.preset for anchor in anchors]]
    found = []
    if made_for and fits not in made_for and "characters" in (fits, *made_for):
        better = ANCHORS[fits][0].preset
        found.append(
            f"preset {preset} is made for {made_for[0]}, the text has {vocabulary:,} different tokens ({fits}): "
            f"--preset {better} or --preset auto fits it"
        )
    elif fits == "many subword tokens" and model.get("head", "full") == "full" and not model.get("tie_embeddings"):
        found.append(
            f"preset {preset} has a full output layer, most of the work with {vocabulary:,} tokens: "
            f"--preset {ANCHORS[fits][0].preset} or --preset auto fits them"
        )
    defaults = {name: ModelConfig.model_fields[name].default for name in ("hidden_size", "num_layers", "expansion")}
    count = parameters({**defaults, **model}, vocabulary)
    if count > CROWDED * tokens:
        found.append(
            f"preset {preset} has about {count:,} parameters for {tokens:,} tokens of text, which it will "
            "overfit: --preset auto makes a model of the right size"
        )
    return found


def size(job: Job) -> tuple[Recipe, list[str]]:
    """The recipe for a job, and lines that say what was chosen and why. A pure function of the job."""
    family = family_of(job.vocabulary)
    anchors = ANCHORS[family]
    seconds, usual = _reference_seconds(job, anchors)
    recipe, nearest = _between(anchors, seconds)
    model, train = recipe["model"], recipe["train"]
    scarce = anchors[-1].tokens / job.tokens
    by_time = model["hidden_size"]
    by_text = load_preset(anchors[-1].preset)["model"]["hidden_size"] * ROOM * scarce ** (-1 / 3)
    model["hidden_size"] = width = _rounded_width(min(by_time, by_text))
    train["learning_rate"] = _two_digits(train["learning_rate"] * math.sqrt(by_time / width))
    dropout = model.get("dropout", 0.0) + DROPOUT_PER_HALVING * math.log2(scarce)
    model["dropout"] = round(20 * min(max(dropout, 0.0), max(MOST_DROPOUT, model.get("dropout", 0.0)))) / 20
    if model.get("embedding_dropout"):
        model["embedding_dropout"] = model["dropout"]
    if job.steps is None and job.epochs is None:
        train["time_budget"] = job.seconds or usual
    else:
        train.pop("time_budget", None)
    passes = seconds * REFERENCE_SPEED * USED / (6 * parameters(model, job.vocabulary)) / job.tokens
    head = "adaptive" if model.get("head") == "adaptive" else "tied" if model.get("tie_embeddings") else "full"
    reason = "limited by the length of the text" if by_text < by_time else "limited by time"
    return recipe, [
        f"auto: {job.tokens:,} tokens, vocabulary {job.vocabulary:,}, {seconds:.0f} s on the presets' machine: "
        f"from {nearest}",
        f"auto: width {width}, {model['num_layers']} blocks: {reason}; {head} output layer for {family}",
        f"auto: dropout {model['dropout']:g} for about {passes:.1f} passes over the text; "
        f"{train['batch_size']} x {train['sequence_length']} tokens a step, learning rate {train['learning_rate']:g}",
    ]


def _reference_seconds(job: Job, anchors: tuple[Anchor, ...]) -> tuple[float, float]:
    """The job's compute in seconds of the reference machine; and the time budget for a job without a length."""
    first = load_preset(anchors[0].preset)
    scale = math.sqrt(job.tokens / anchors[0].tokens)  # a quarter of the text, half the time
    budget = round(first["train"]["time_budget"] * min(max(scale, 0.25), 4.0))
    if job.steps is None and job.epochs is None:
        return (job.seconds or budget) * job.speed / REFERENCE_SPEED, budget
    window = first["train"]["batch_size"] * first["train"]["sequence_length"]
    read = job.steps * window if job.steps is not None else (job.epochs or 1) * job.tokens
    return read * 6 * parameters(first["model"], job.vocabulary) / (USED * REFERENCE_SPEED), budget


def _between(anchors: tuple[Anchor, ...], seconds: float) -> tuple[Recipe, str]:
    """The recipe of the nearest anchor with its sizes interpolated to this much compute, and its name."""
    presets = [merge(load_preset(anchor.preset)) for anchor in anchors]
    budgets = [preset["train"]["time_budget"] for preset in presets]
    place = 0.0
    if len(anchors) > 1:
        place = min(max(math.log(seconds / budgets[0]) / math.log(budgets[-1] / budgets[0]), 0.0), 1.0)
    near = round(place)
    recipe, low, high = merge(presets[near]), presets[0], presets[-1]
    for section, key in (
        *(("model", name) for name in ("hidden_size", "num_layers", "expansion")),
        *(("train", name) for name in ("batch_size", "sequence_length", "learning_rate")),
    ):
        recipe[section][key] = low[section][key] * (high[section][key] / low[section][key]) ** place
    dropouts = [preset["model"].get("dropout", 0.0) for preset in (low, high)]
    model, train = recipe["model"], recipe["train"]
    model["dropout"] = dropouts[0] + place * (dropouts[1] - dropouts[0])
    # Extrapolated beyond the anchors, as is the learning rate.
    beyond = seconds / min(max(seconds, budgets[0]), budgets[-1])
    before, model["hidden_size"] = model["hidden_size"], model["hidden_size"] * beyond**WIDTH_PER_COMPUTE
    train["learning_rate"] *= math.sqrt(before / model["hidden_size"])
    model["num_layers"], model["expansion"] = round(model["num_layers"]), round(2 * model["expansion"]) / 2
    model["hidden_size"] = _rounded_width(model["hidden_size"])
    train["batch_size"] = max(4, 4 * round(train["batch_size"] / 4))
    train["sequence_length"] = 1 << round(math.log2(train["sequence_length"]))
    train["learning_rate"] = _two_digits(min(train["learning_rate"], 1.5 * low["train"]["learning_rate"]))
    recipe["data"] = {}
    return recipe, anchors[near].preset


def _rounded_width(width: float) -> int:
    step = 16 if width < 128 else 32
    return min(1024, max(32, step * round(width / step)))


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
