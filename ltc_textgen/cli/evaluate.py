"""`ltc eval`: measure a trained network on a text."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltc_textgen.cli.common import (
    DEFAULT_RUN,
    Device,
    Json,
    RunDirectory,
    Threads,
    describe,
    given,
    prepare_torch,
    progress_bar,
)
from ltc_textgen.config import CacheConfig, DataConfig, DynamicConfig, SamplingConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.io.output import print_json, print_line, print_message
from ltc_textgen.io.paths import user_path
from ltc_textgen.settings import AnySettings

if TYPE_CHECKING:
    from ltc_textgen.data.corpora import Corpus
    from ltc_textgen.evaluation import EvaluationText, Scores
    from ltc_textgen.runs import Run

EXAMPLES = """Examples:

`ltc eval runs/book --data other-book.txt`

`ltc eval runs/book --data book.txt --split valid --window 64 --json`

`ltc eval runs/default --data wikitext-2 --split test --dynamic --cache 2000`

`ltc eval runs/book --window 256 --random-crops 200` (and nanoGPT's estimate)

`ltc eval runs/book --adapt` (a memory that learns from what was scored, as compressors do)

`ltc eval runs/book --sample 1000` (statistics of its own text)
"""


HELD_OUT = 200_000
"""Characters of the held-out text in which copied runs are counted, as a baseline for those of a sample."""

Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="Text to measure: as in `ltc train`; the run's own corpus if not given."),
]
Split = Annotated[
    str,
    typer.Option(
        "--split",
        help="all, or the part that training held out (valid), learned from (train) or the corpus keeps (test).",
    ),
]
Window = Annotated[
    int | None,
    typer.Option("--window", min=1, max=2**31 - 1, help="Reset the state every so many tokens; never if not given."),
]
Crops = Annotated[
    int | None,
    typer.Option("--random-crops", min=1, max=10**6, help="Also estimate the loss from windows at random places."),
]
Dynamic = Annotated[bool, typer.Option("--dynamic", help="Also score a copy that learns from the text as it reads it.")]
Cache = Annotated[int | None, typer.Option("--cache", help="Also score with a cache of so many last tokens.", min=1)]
Memory = Annotated[
    bool, typer.Option("--memory/--no-memory", help="Also score with the run's n-gram memory, if it has one.")
]
Adapt = Annotated[
    bool, typer.Option("--adapt", help="Also score with a memory that learns from the text as it reads it.")
]
Sample = Annotated[
    int | None,
    typer.Option("--sample", min=1, max=10**7, help="Also generate so many tokens and compare them with the corpus."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of the random crops and the sample.")]


@dataclass(frozen=True)
class Measures:
    """What is measured; the loss always, the rest where it is not None.

    Args:
        data: Corpus, and how training split it.
        part: all, train, valid or test.
        window: Tokens between resets of the state; None carries it throughout.
        crops: Random crops of `window` tokens.
        seed: Of the crops.
        dynamic: Dynamic evaluation.
        cache: Continuous cache.
        sampling: How a text of the network's own is generated.
        memory: Whether to score with the run's n-gram memory too, if it has one and the state is carried.
        adapt: Whether to score with a memory that learns as it reads.
    """

    data: DataConfig
    part: str
    window: int | None = None
    crops: int | None = None
    seed: int = 0
    dynamic: DynamicConfig | None = None
    cache: CacheConfig | None = None
    sampling: SamplingConfig | None = None
    memory: bool = True
    adapt: bool = False

    def __post_init__(self) -> None:
        if self.part not in ("all", "train", "valid", "test"):
            raise UsageError(f"--split {self.part}: expected all, train, valid or test")
        if self.window and (self.dynamic or self.cache):
            raise UsageError("--dynamic and --cache read the text with carried state: leave out --window")
        if self.window and self.adapt:
            raise UsageError("--adapt reads the text with carried state: leave out --window")
        if self.adapt and not self.memory:
            raise UsageError("--adapt and --no-memory exclude each other")
        if self.crops and not self.window:
            raise UsageError("--random-crops needs --window, the tokens of a crop (nanoGPT's CPU configuration: 64)")


def evaluate(
    run_dir: RunDirectory = DEFAULT_RUN,
    data: Data = None,
    split: Split = "",
    window: Window = None,
    random_crops: Crops = None,
    dynamic: Dynamic = False,
    dynamic_lr: Annotated[float | None, describe(DynamicConfig, "learning_rate", "--dynamic-lr")] = None,
    dynamic_decay: Annotated[float | None, describe(DynamicConfig, "decay", "--dynamic-decay")] = None,
    dynamic_segment: Annotated[int | None, describe(DynamicConfig, "segment", "--dynamic-segment")] = None,
    cache: Cache = None,
    cache_theta: Annotated[float | None, describe(CacheConfig, "theta", "--cache-theta")] = None,
    cache_lambda: Annotated[float | None, describe(CacheConfig, "weight", "--cache-lambda")] = None,
    memory: Memory = True,
    adapt: Adapt = False,
    sample: Sample = None,
    temperature: Annotated[float | None, describe(SamplingConfig, "temperature")] = None,
    seed: Seed = 0,
    encoding_errors: Annotated[str | None, describe(DataConfig, "encoding_errors")] = None,
    text_column: Annotated[str | None, describe(DataConfig, "text_column")] = None,
    template: Annotated[str | None, describe(DataConfig, "template")] = None,
    include: Annotated[list[str] | None, describe(DataConfig, "include")] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a trained network on a text: nats per token, perplexity, word perplexity, bits per byte.

    A file is read whole unless --split says otherwise; the corpus of the run is measured on its validation part.
    Options with "also" add measurements; they do not change the loss itself.
    """
    learns = _settings(DynamicConfig, "--dynamic", dynamic, lr=dynamic_lr, decay=dynamic_decay, segment=dynamic_segment)
    recalls = _settings(CacheConfig, "--cache", cache, theta=cache_theta, **{"lambda": cache_lambda})
    sampling = _sampling(sample, temperature, seed)
    changes = given(include=include, encoding_errors=encoding_errors, text_column=text_column, template=template)
    config = DataConfig.parse(given(data=data) | changes)
    part = split or ("all" if data else "valid")
    asked = Measures(config, part, window, random_crops, seed, learns, recalls, sampling, memory, adapt)
    from ltc_textgen.runs import load_run

    run = load_run(user_path(run_dir), prepare_torch(device, threads))
    scores, more = measure(run, replace(asked, data=_text(run, data, changes)))
    if as_json:
        print_json(scores.to_dict() | more)
    else:
        _show(scores, more)


def measure(run: "Run", asked: Measures) -> "tuple[Scores, dict[str, Any]]":
    """The loss of a run on a text, and the other measurements that were asked for."""
    from ltc_textgen.evaluation import read_text, score_tokens

    spelled: Counter[str] = Counter()
    text = read_text(run.network, run.tokenizer, _looked_through(run, asked, spelled))
    if spelled:
        names = ", ".join(f"{token} ({count:,} times)" for token, count in spelled.most_common(4))
        print_message(f"special tokens are spelled in the text and read as ordinary characters: {names}")
    with progress_bar("reading") as advance:
        nll, _ = score_tokens(run.network, text.tokens, window=asked.window, progress=advance)
    scores = text.scores(nll, asked.window)
    more = {"gzip_bits_per_byte": text.gzip_bits_per_byte} | _adapted(run, text, asked.dynamic, asked.cache)
    more |= _estimated(run, text, asked.crops, asked.window, asked.seed)
    more |= _remembered(run, text, asked)
    if asked.sampling:
        more["sample"] = _generated(run, asked, asked.sampling)
    return scores, more


def _looked_through(run: "Run", asked: Measures, spelled: "Counter[str]") -> Iterator[str]:
    """The documents; special tokens that they spell are counted in `spelled` as they pass."""
    for document in documents(asked.data, asked.part, print_message):
        spelled.update(run.tokenizer.spelled_specials(document))
        yield document


def _text(run: "Run", data: list[str] | None, changes: dict[str, Any]) -> DataConfig:
    """Which text is measured: the run's own settings, overridden by what was given."""
    settings = (run.config.data if run.config else DataConfig()).model_dump()
    if data:
        settings |= {"valid": None, "include": ()}
    if {"text_column", "template"} & changes.keys():  # in place of the run's own
        settings |= {"text_column": "text", "template": None}
    return DataConfig.parse({**settings, **given(data=data), **changes})


_FIELDS = {"lr": "learning_rate", "lambda": "weight"}
"""Settings that are named otherwise as options."""


def _settings(kind: type[AnySettings], flag: str, asked: bool | int | None, **options: Any) -> AnySettings | None:
    """The settings that an option asks for, with those of its further options; None if it was not given."""
    values = {_FIELDS.get(name, name): value for name, value in given(**options).items()}
    if not asked:
        if values:
            option = next(name for name, value in options.items() if value is not None)
            raise UsageError(f"{flag}-{option} has no effect without {flag}")
        return None
    return kind.parse(values if asked is True else values | {"size": asked}, flag)


def _sampling(sample: int | None, temperature: float | None, seed: int) -> SamplingConfig | None:
    if temperature is not None and not sample:
        raise UsageError("--temperature has no effect without --sample")
    values = {"max_tokens": sample, "seed": seed, "ignore_eos": True, **given(temperature=temperature)}
    return SamplingConfig.parse(values) if sample else None


def _estimated(run: "Run", text: "EvaluationText", crops: int | None, window: int | None, seed: int) -> dict[str, Any]:
    if crops is None or window is None:
        return {}
    from ltc_textgen.evaluation.scoring import score_crops

    return {"random_crops": score_crops(run.network, text.tokens, crops, window, seed).to_dict()}


def _adapted(
    run: "Run", text: "EvaluationText", dynamic: DynamicConfig | None, cache: CacheConfig | None
) -> dict[str, Any]:
    """The scores with a cache, with dynamic evaluation, and with both."""
    from ltc_textgen.evaluation.adaptive import score_adaptively

    found: dict[str, Any] = {}
    if cache:
        with progress_bar("with a cache") as advance:
            adapted = score_adaptively(run.network, text.tokens, cache=cache, progress=advance)
        found["cache"] = text.scores(adapted.mixed).to_dict() | {"settings": cache.model_dump()}
    if dynamic:
        with progress_bar("learning") as advance:
            adapted = score_adaptively(run.network, text.tokens, dynamic, cache, advance)
        found["dynamic"] = text.scores(adapted.own).to_dict() | {"settings": dynamic.model_dump()}
        if cache:
            found["dynamic_and_cache"] = text.scores(adapted.mixed).to_dict()
    return found


def _remembered(run: "Run", text: "EvaluationText", asked: Measures) -> dict[str, Any]:
    """The scores with the n-gram memory of the run, static and adapting."""
    if not asked.memory or asked.window:
        return {}
    from ltc_textgen.evaluation.memory_scores import score_with_memory
    from ltc_textgen.runs import memory_of

    memory = memory_of(run)
    if memory is None:
        if asked.adapt:
            raise UsageError(f"{run.path} has no n-gram memory: leave out --adapt, or train with --memory")
        return {}
    found: dict[str, Any] = {}
    for name, adapting in (("memory", False), ("memory_adapting", True)):
        if adapting and not asked.adapt:
            continue
        with progress_bar("learning" if adapting else "with memory") as advance:
            scores = score_with_memory(run.network, text.tokens, memory, adapting=adapting, progress=advance)
        found[name] = text.scores(scores.mixed).to_dict() | {"counts_alone": scores.memory / scores.tokens}
    return found


def _generated(run: "Run", asked: Measures, sampling: SamplingConfig) -> dict[str, Any]:
    """A text by the model, its measures, and those of parts of the corpus of its length."""
    from ltc_textgen.evaluation.text_stats import like_corpus, measure_text
    from ltc_textgen.generation import generate
    from ltc_textgen.runs import memory_of

    memory = memory_of(run) if asked.memory else None
    (written,) = generate(run.network, run.tokenizer, "", sampling, memory=memory, notify=print_message)
    texts = {"sample": written.text}
    if memory:
        (alone,) = generate(run.network, run.tokenizer, "", sampling, notify=lambda _: None)
        texts["network_alone"] = alone.text
    own = like_corpus(documents(asked.data, asked.part, lambda _: None), len(written.text))
    return {
        "text": written.text,
        "characters": len(written.text),
        "temperature": sampling.temperature,
        "seed": written.seed,
        "measures": measure_text(written.text).to_dict(),
        "corpus": None if own is None else own.to_dict(),
        "copied": _copied(run, texts),
    }


def _copied(run: "Run", texts: dict[str, str]) -> dict[str, Any] | None:
    """How much of some texts, and of the held-out text, stands in the training text; None if that cannot be read."""
    from ltc_textgen.errors import DataError
    from ltc_textgen.evaluation.copying import measure_copying

    if run.config is None:
        return None
    try:
        learned = list(documents(run.config.data, "train", lambda _: None))
        held_out = "\n".join(documents(run.config.data, "valid", lambda _: None))
    except DataError:
        return None
    texts = texts | {"held_out": held_out[:HELD_OUT]}
    return {name: measure_copying(text, learned).to_dict() for name, text in texts.items()}


def _show(scores: "Scores", more: dict[str, Any]) -> None:
    print_line(f"nats per token    {scores.nll_per_token:.4f}   ({scores.tokens:,} tokens)")
    print_line(f"perplexity        {scores.perplexity:.2f}")
    print_line(f"word perplexity   {scores.word_perplexity:.2f}   ({scores.words:,} words and line ends)")
    zipped = more["gzip_bits_per_byte"]
    print_line(f"bits per byte     {scores.bits_per_byte:.4f}   ({scores.bytes:,} bytes; gzip -9: {zipped:.4f})")
    lossy = "" if scores.lossless else "   (lossy tokenizer: compare with its like only)"
    print_line(f"unknown tokens    {scores.unknown_rate:.2%}{lossy}")
    print_line(f"state             {'carried throughout' if scores.window is None else _resets(scores.window)}")
    for name in ("memory", "cache", "dynamic", "dynamic_and_cache", "memory_adapting"):
        if name in more:
            nats = more[name]["nll_per_token"]
            bits = more[name]["bits_per_byte"]
            print_line(f"with {name.replace('_', ' '):<21}{nats:.4f} nats per token, {bits:.4f} bits per byte")
    if crops := more.get("random_crops"):
        error = crops["standard_error"]
        spread = "" if error is None else f" +- {error:.4f}"
        print_line(
            f"random crops      {crops['nll_per_token']:.4f}{spread}   ({crops['crops']} of {crops['window']} tokens)"
        )
    if sample := more.get("sample"):
        print_line(f"sample            {sample['characters']:,} characters at temperature {sample['temperature']:g}")
        print_line(f"{'':<18}{'written':>9} {'corpus':>9}   (parts of the same length)")
        for measure, value in sample["measures"].items():
            print_line(f"{measure:<18}{_number(value):>9} {_number((sample['corpus'] or {}).get(measure)):>9}")
        for name, copied in (sample["copied"] or {}).items():
            runs = f"longest run {copied['longest']:,} characters, {copied['fraction']:.2%} in runs of 50 or more"
            print_line(f"{'copied, ' + name.replace('_', ' '):<24}{runs}")


def _resets(window: int) -> str:
    return f"reset every {window} tokens"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def documents(config: DataConfig, part: str, notify: Callable[[str], None]) -> Iterator[str]:
    """The documents of a part of a corpus.

    Args:
        config: Corpus, and how training cut it.
        part: train, valid, test, or all; all of a file is the file as it is, uncut.
        notify: Called with notes for the user.
    """
    from ltc_textgen.data.corpora import documents_of, load_corpus

    paths = [user_path(name) for name in config.sources]
    if part == "all" and all(path.exists() for path in paths):
        return documents_of(paths, config, notify)
    corpus = load_corpus(config, notify)
    if part == "all":
        return chain.from_iterable(corpus.documents(name) for name in _parts(corpus))
    return corpus.documents(part)


def _parts(corpus: "Corpus") -> list[str]:
    """The splits that together are the whole corpus."""
    if "whole" not in corpus.sources:  # the corpus as it was before training cut a part off
        return list(corpus.sources)
    return [name for name in ("whole", "test") if name in corpus.sources]
