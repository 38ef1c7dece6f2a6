"""`ltc train`: from text to a network that writes text."""

import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltc_textgen.cli.common import DEFAULT_RUN, Json, Threads, describe, given, is_main_process, seconds
from ltc_textgen.cli.prepare import CHOSEN, prepared
from ltc_textgen.config import DataConfig, RunConfig, SamplingConfig, TrainConfig
from ltc_textgen.errors import ArtifactError, LTCError, UsageError
from ltc_textgen.io.output import print_json, print_line
from ltc_textgen.io.paths import run_path, user_path
from ltc_textgen.presets.recipes import (
    Recipe,
    assignments,
    load_file,
    load_preset,
    merge,
    preset_names,
    preset_text,
    settings_table,
)
from ltc_textgen.training.budget import duration, lengths

if TYPE_CHECKING:
    from ltc_textgen.data.token_cache import TokenData
    from ltc_textgen.training import TrainResult
    from ltc_textgen.training.text_memory import MemoryBuilder, MemoryResult

EXAMPLES = """Examples:

`ltc train` (WikiText-2; without a hub the text inside Python)

`ltc train --data my-book.txt --time-budget 80s --out runs/book`

`ltc train --data my-book.txt --tokenizer char --preset char-best --out runs/book`

`ltc train --data user/dataset --epochs 2 --set coupling=full --set steps=6 --out runs/full`

`ltc train --resume --out runs/book` (continues where it stopped)

`ltc train --resume --more 10m --out runs/book` (ten minutes beyond its budget)
"""


NEARBY = 2
"""Folders below that of --out that are searched for runs."""

Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Recipe to start from: {', '.join(preset_names())}; or auto, which sizes one by the text, the time "
        "and this machine. Chosen by the corpus if neither this nor --config is given."
    ),
]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        help="How long to train in total, what a resumed run has used included: 80s, 15m, 1h30m.",
        metavar="DURATION",
        show_default=False,
    ),
]
More = Annotated[
    str | None, typer.Option(help="With --resume: how much longer to train.", metavar="DURATION", show_default=False)
]
ResumeAnyway = Annotated[
    bool,
    typer.Option(
        "--resume-anyway",
        help="Resume even with another corpus, tokenizer, batch or number of processes, and say what that means.",
    ),
]


Memory = Annotated[
    bool | None,
    typer.Option("--memory/--no-memory", help="Keep an n-gram memory of the text, as presets do.", show_default=False),
]
Assigned = Annotated[
    list[str] | None, typer.Option("--set", help="Any other setting, as key=value; see --list-settings.")
]


def _list_settings(asked: bool) -> None:
    if asked:
        print_line(settings_table())
        raise typer.Exit


def train(
    data: Annotated[list[str] | None, describe(DataConfig, "data", "--data", "-d")] = None,
    include: Annotated[list[str] | None, describe(DataConfig, "include")] = None,
    tokenizer: Annotated[str | None, describe(DataConfig, "tokenizer")] = None,
    preset: Preset = None,
    config: Annotated[Path | None, typer.Option(help="Recipe file (TOML), or the training.json of a run.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory to write.")] = DEFAULT_RUN,
    init: Annotated[Path | None, describe(TrainConfig, "init")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume the run in --out. Where there is none yet, --data is needed to start one."
        ),
    ] = False,
    resume_anyway: ResumeAnyway = False,
    time_budget: TimeBudget = None,
    more: More = None,
    epochs: Annotated[int | None, describe(TrainConfig, "epochs")] = None,
    max_steps: Annotated[int | None, describe(TrainConfig, "max_steps")] = None,
    valid: Annotated[str | None, describe(DataConfig, "valid")] = None,
    valid_fraction: Annotated[float | None, describe(DataConfig, "valid_fraction")] = None,
    text_column: Annotated[str | None, describe(DataConfig, "text_column")] = None,
    template: Annotated[str | None, describe(DataConfig, "template")] = None,
    encoding_errors: Annotated[str | None, describe(DataConfig, "encoding_errors")] = None,
    seed: Annotated[int | None, describe(TrainConfig, "seed")] = None,
    device: Annotated[str | None, describe(TrainConfig, "device")] = None,
    threads: Threads = None,
    memory: Memory = None,
    assigned: Assigned = None,
    list_settings: Annotated[
        bool, typer.Option("--list-settings", callback=_list_settings, is_eager=True, help="Print every setting.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a network on text and leave a run directory from which `ltc generate` writes.

    Later sources win: defaults, --preset, --config, flags and --set.
    """
    out = user_path(out)
    config = None if config is None else user_path(config)
    budget = seconds(time_budget) if time_budget is not None else None
    flags: Recipe = {
        "data": given(data=data, include=include, tokenizer=tokenizer, valid=valid, valid_fraction=valid_fraction)
        | given(text_column=text_column, template=template, encoding_errors=encoding_errors),
        "train": given(
            time_budget=budget, epochs=epochs, max_steps=max_steps, seed=seed, device=device, threads=threads
        ),
        "memory": given(enabled=memory),
    }
    changes = merge(flags, assignments(assigned or []))
    resume = resume or resume_anyway
    if init is not None:
        changes = merge(_warm_start(init, resume), changes)
    if more is not None:
        changes = _extended(changes, out, seconds(more), resume)
    started = out / "training.json"
    if resume and started.exists():
        if (preset or config) and not _launched():
            raise UsageError("--resume continues with the settings of the run: leave out --preset and --config")
        recipe, preset = merge(_of_run(started), changes), None
    else:
        recipe, preset = _new(changes, preset, config, out, resume)
    _train(recipe, preset=preset, out=out, resume=resume, anyway=resume_anyway, as_json=as_json)


def _new(
    changes: Recipe, preset: str | None, config: Path | None, out: Path, resume: bool
) -> tuple[Recipe, str | None]:
    """What the user set for a run that starts, and the preset below it."""
    if preset not in (None, "auto"):
        preset_text(preset)  # rejects an unknown one at once
    own = merge(*([load_file(config)] if config is not None else []), changes)
    if resume:
        _require_text(own, preset, out)
    return own, preset or (None if config is not None else CHOSEN)


def _extended(changes: Recipe, out: Path, more: float, resume: bool) -> Recipe:
    """`changes` with a time budget of what the run in `out` has used and `more` seconds.

    Raises:
        UsageError: If no run is resumed, another length is given too, or a launcher would extend it at every restart.
    """
    if not resume:
        raise UsageError("--more extends a run that is resumed: add --resume, or give --time-budget to a new one")
    if given_lengths := lengths(changes.get("train", {})):
        raise UsageError(f"--more and {given_lengths[0]} exclude each other: which one says how long the run is?")
    if _launched():
        raise UsageError("--more would extend the run at every restart by the launcher: give --time-budget, the total")
    from ltc_textgen.training.checkpoint import recorded_progress

    total = recorded_progress(out).seconds + more
    return merge(changes, {"train": {"time_budget": total}})


def _warm_start(init: Path, resume: bool) -> Recipe:
    if resume and not _launched():
        raise UsageError("--init begins a new run, --resume continues one: leave one of them out")
    from ltc_textgen.training.warm_start import recipe_of

    return recipe_of(run_path(init))


def _require_text(own: Recipe, preset: str | None, out: Path) -> None:
    """Reject `--resume` of a directory without a run, which may be mistyped, unless a text is given.

    Raises:
        UsageError: If there is no run in `out` and no text to start one on was named; it lists the runs nearby.
    """
    below = {} if preset in (None, "auto") else load_preset(preset)
    if merge(below, own).get("data", {}).get("data") is None:
        raise UsageError(
            f"{out} holds no run to resume{_runs_nearby(out)}; to start one there, give its text with --data"
        )


def _launched() -> bool:
    """Whether torchrun started this process: after a failure it does so with the command that had started the run.

    Its count of restarts is no help: it stays 0 where only another machine's process died.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ


def _of_run(path: Path) -> Recipe:
    try:
        return load_file(path)
    except UsageError as error:
        raise ArtifactError(f"cannot resume: {error}") from None


def _train(recipe: Recipe, *, preset: str | None, out: Path, resume: bool, anyway: bool, as_json: bool) -> None:
    # Wrong settings are rejected before the corpus is read.
    settings = RunConfig.parse(recipe).train
    from ltc_textgen.devices import choose_device
    from ltc_textgen.training import Reporter, make_reporter
    from ltc_textgen.training import train as run_training
    from ltc_textgen.training.checkpoint import list_checkpoints
    from ltc_textgen.training.metrics import check_trackers
    from ltc_textgen.training.report import SurvivingReporter
    from ltc_textgen.training.run_lock import reject_other_run

    choose_device(settings.device)
    check_trackers(settings.report_to)
    reject_other_run(out, resume)
    reporter = SurvivingReporter(make_reporter(as_json=as_json)) if is_main_process() else Reporter()
    if resume and not list_checkpoints(out):
        reporter.note(f"{out} holds no checkpoint: a new run starts there{_runs_nearby(out)}")
    run, data = prepared(recipe, preset, reporter)
    data, builder = _counting(run, data, reporter.note)
    result = run_training(run, out, resume=resume, anyway=anyway, reporter=reporter, data=data)
    if is_main_process():
        memory = _remember(result, builder, reporter.note)
        _report(result, memory, data, run, as_json, reporter.note)
    if result.not_finite:
        raise LTCError(
            f"{out}: the validation loss at the end is not a finite number: "
            + (
                f"the weights of step {result.best_step} are kept"
                if result.best_step is not None
                else "no weights are kept"
            )
            + "; train again with a lower learning_rate"
        )
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _counting(
    run: RunConfig, data: "TokenData", note: Callable[[str], None]
) -> "tuple[TokenData, MemoryBuilder | None]":
    """The text for the network; and what counts it, in the main process, if there is to be an n-gram memory."""
    if not run.memory.enabled:
        return data, None
    from ltc_textgen.training.text_memory import MemoryBuilder, hold_back

    if MemoryBuilder.unavailable():
        note("no n-gram memory: it needs the compiled kernels, and there are none here (see ltc doctor)")
        return data, None
    data, held_back = hold_back(data, run.train)
    return data, MemoryBuilder(data, held_back, run.memory) if is_main_process() else None


def _remember(
    result: "TrainResult", builder: "MemoryBuilder | None", note: Callable[[str], None]
) -> "MemoryResult | None":
    """Save the n-gram memory in the run directory; None without one, or if the run was stopped."""
    if builder is None or result.best_val_loss is None:
        return None
    if result.stopped_by:
        note("no n-gram memory yet: the run makes it at its end")
        return None
    from ltc_textgen.runs import load_run

    return builder.finish(result.out, load_run(result.out).network, result.valid_tokens, note)


def _runs_nearby(out: Path) -> str:
    """The last runs in the folder of `out` or below it, for those who mistyped --out."""
    from ltc_textgen.cli.runs import find_runs

    folder = next(parent for parent in out.absolute().parents if parent.is_dir())
    found = [path for path in find_runs(folder, NEARBY) if path != out.absolute()]
    newest = sorted(found, key=lambda path: (path / "training.json").stat().st_mtime, reverse=True)[:5]
    names = ", ".join(shlex.quote(os.path.relpath(path)) for path in newest)
    return f" (runs nearby: {names})" if names else ""


def _report(
    result: "TrainResult",
    memory: "MemoryResult | None",
    data: "TokenData",
    run: RunConfig,
    as_json: bool,
    note: Callable[[str], None],
) -> None:
    """Print the result: the loss in common units, and a sample."""
    from ltc_textgen.training.monitor import memorisation

    if result.best_val_loss is None:
        summary: dict[str, Any] = {}
    else:
        nats = result.best_val_loss * (len(data.valid) - 1)
        summary = {
            "perplexity": math.exp(min(result.best_val_loss, 700.0)),
            "bits_per_byte": nats / (math.log(2) * data.valid_bytes),
            "word_perplexity": math.exp(min(nats / data.valid_words, 700.0)),
        }
        summary["sample"] = _sample(result.out, run, memory is not None, note)
        summary["memory"] = memory.to_dict() if memory else None
    losses = result.val_loss, result.train_loss, result.best_val_loss
    found = memorisation(*losses, result.best_step, unlike=data.comparison.unlike)
    if as_json:
        print_json(result.to_dict() | summary | {"memorisation": found.to_dict() if found else None})
        return
    if summary:
        print_line(f"validation loss  {result.best_val_loss:.4f} nats/token, over {result.valid_tokens:,} tokens")
        print_line(f"perplexity       {summary['perplexity']:.2f}")
        fraction = result.valid_tokens / (len(data.valid) - 1)
        scored_bytes = round(fraction * data.valid_bytes)
        print_line(f"bits per byte    {summary['bits_per_byte']:.4f}, over {scored_bytes:,} bytes")
        if memory:
            bits = memory.mixed_loss * memory.scored_tokens / (math.log(2) * max(scored_bytes, 1))
            print_line(f"with memory      {memory.mixed_loss:.4f} nats/token, {bits:.4f} bits per byte")
        print_line(
            f"trained          {result.step:,} steps, {result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s"
        )
        print_line(f"sample           {run.train.sample_prompt}{summary['sample']}")
        if found and found.advice:
            print_line(found.advice)
    out = shlex.quote(str(result.out))
    if result.stopped_by:
        print_line(
            f"stopped          by {result.stopped_by} at step {result.step:,}, saved: ltc train --resume --out {out}"
        )
    if run.train.time_budget is not None and result.still_falling:
        budget = duration(run.train.time_budget)
        print_line(f"still falling    train further: ltc train --resume --more {budget} --out {out}")
    if result.best_step is not None or result.stopped_by:
        print_line(f"write text       ltc generate {out} --max-tokens 300")


def _sample(out: Path, run: RunConfig, has_memory: bool, note: Callable[[str], None]) -> str:
    """What `ltc generate` writes with this run's seed, with the n-gram memory if training has counted one."""
    if not run.train.sample_tokens:
        return ""
    from ltc_textgen.generation import generate
    from ltc_textgen.runs import load_run, memory_of

    best = load_run(out)
    sampling = SamplingConfig(max_tokens=run.train.sample_tokens, seed=run.train.seed)
    memory = memory_of(best) if has_memory else None
    prompt = run.train.sample_prompt
    return generate(best.network, best.tokenizer, prompt, sampling, memory=memory, notify=note)[0].text
