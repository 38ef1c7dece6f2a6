"""`ltc generate`: write text with a trained network."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
)
from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.io.output import print_json, print_message, write

if TYPE_CHECKING:
    from ltc_textgen.generation import Piece
    from ltc_textgen.model.text_state import TextState
    from ltc_textgen.runs import PlainRun

Engine = Literal["auto", "torch", "native", "int8"]

EXAMPLES = """Examples:

`ltc generate runs/book --prompt "It was" --max-tokens 300`

`ltc generate runs/book --prompt "ROMEO:" --temperature 0.7 --top-p 0.9 --seed 1 --stop "JULIET:"`

`ltc generate runs/book --prompt - < letter.txt` (the prompt from stdin)

`ltc generate runs/book --prompt "It was" --num-samples 4 --json`

`ltc generate runs/book --prompt-file book.txt --save-state book.state -n 1` (read once), then
`ltc generate runs/book --state book.state --prompt " And then"`
"""


def generate(
    run_dir: RunDirectory = DEFAULT_RUN,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Text to continue; - reads it from stdin.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option("--prompt-file", help="File with the text to continue.")] = None,
    max_tokens: Annotated[int | None, describe(SamplingConfig, "max_tokens", "--max-tokens", "-n")] = None,
    temperature: Annotated[float | None, describe(SamplingConfig, "temperature")] = None,
    top_k: Annotated[int | None, describe(SamplingConfig, "top_k")] = None,
    top_p: Annotated[float | None, describe(SamplingConfig, "top_p")] = None,
    min_p: Annotated[float | None, describe(SamplingConfig, "min_p")] = None,
    repetition_penalty: Annotated[float | None, describe(SamplingConfig, "repetition_penalty")] = None,
    seed: Annotated[int | None, describe(SamplingConfig, "seed")] = None,
    stop: Annotated[list[str] | None, describe(SamplingConfig, "stop")] = None,
    ignore_separator: Annotated[bool, describe(SamplingConfig, "ignore_separator", "--ignore-separator")] = False,
    num_samples: Annotated[int | None, describe(SamplingConfig, "num_samples")] = None,
    engine: Annotated[
        Engine, typer.Option(help="What computes: native (fused, CPU), int8 (native, 8-bit weights), torch, or auto.")
    ] = "auto",
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Go on from a text that --save-state has kept; the prompt follows it."),
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option("--save-state", help="Keep what was read, the prompt included, in this file.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write text with a trained network: the prompt, and what it makes of it, as it is made."""
    values = given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        ignore_separator=ignore_separator,
        num_samples=num_samples,
    )
    sampling = SamplingConfig.parse(values)
    text = read_prompt(prompt, prompt_file)
    from ltc_textgen.generation import generate as complete
    from ltc_textgen.generation import generate_stream
    from ltc_textgen.runs import load_plain_run

    run = load_plain_run(run_dir, prepare_torch(device, threads))
    before, rest = read_before(run, text, state, save_state)
    options: dict[str, Any] = {"state": before, "engine": engine, "notify": print_message}
    if as_json:
        completions = complete(run.model, run.tokenizer, rest, sampling, **options)
        samples = [completion.to_dict() for completion in completions]
        print_json({"prompt": text, "samples": samples, "sampling": sampling.model_dump(mode="json")})
        return
    pieces = generate_stream(run.model, run.tokenizer, rest, sampling, **options)
    ends = show_one(text, pieces) if sampling.num_samples == 1 else show_many(text, pieces, sampling.num_samples)
    tell_speed(ends)


def tell_speed(ends: list["Piece"]) -> None:
    """Say on stderr how fast the texts were written."""
    tokens, passed = sum(end.tokens for end in ends), max(end.seconds for end in ends)
    print_message(f"{tokens} tokens, {tokens / max(passed, 1e-9):,.0f} tokens/s, seed {ends[0].seed}")


def read_before(
    run: "PlainRun", prompt: str, state: Path | None, save_state: Path | None
) -> "tuple[TextState | None, str]":
    """What is read before the first token is drawn: the state to go on from, and the part of the prompt after it.

    Raises:
        ArtifactError: If the state's file is damaged, or of another model.
        UsageError: If it holds several texts.
    """
    import torch

    from ltc_textgen.generation.generate import encode_prompt
    from ltc_textgen.model.text_state import TextState

    before = None if state is None else TextState.load(state, run.model)
    if before is not None and before.batch_size != 1:
        raise UsageError(f"{state} holds {before.batch_size} texts, --state takes one")
    if save_state is None:
        return before, prompt
    if before is None or prompt:
        ids = encode_prompt(run.tokenizer, prompt, print_message)
        before = run.model.read(torch.tensor([ids]), state=before)
    before.save(save_state)
    print_message(f"{before.tokens[0]:,} tokens read, kept in {save_state}")
    return before, ""


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from the command line, a file or stdin; empty if none was given.

    Raises:
        UsageError: If two were given, or one cannot be read.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("--prompt and --prompt-file exclude each other")
    if prompt is None and prompt_file is None:
        return ""
    try:
        if prompt_file is not None:
            content = prompt_file.read_bytes()
        else:  # where the locale is not UTF-8, Python hands over the bytes that it could not decode as surrogates
            content = sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt or "")
        return content.decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the prompt file {prompt_file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt is not UTF-8: byte {error.start}") from None


def show_one(prompt: str, pieces: Iterator["Piece"]) -> list["Piece"]:
    """Print one text as it is made, and return its last piece."""
    write(prompt)
    last: Any = None
    for piece in pieces:
        write(piece.text)
        last = piece
    write("\n")
    return [last]


def show_many(prompt: str, pieces: Iterator["Piece"], count: int) -> list["Piece"]:
    """Print several texts one after the other, each as soon as those before it are complete; returns their ends."""
    texts, ends, shown = [""] * count, {}, 0
    for piece in pieces:
        texts[piece.sample] += piece.text
        if piece.finish_reason is not None:
            ends[piece.sample] = piece
        while shown in ends:
            write(f"--- sample {shown + 1} of {count}\n{prompt}{texts[shown]}\n")
            shown += 1
    return list(ends.values())
