"""`ltc generate`: text from a trained network."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ltc_textgen.cli.common import DEFAULT_RUN, Device, Json, RunDirectory, Threads, describe, given, prepare_torch
from ltc_textgen.config import SamplingConfig
from ltc_textgen.errors import UsageError
from ltc_textgen.io.output import print_json, print_message, write
from ltc_textgen.io.paths import os_reason, user_path

if TYPE_CHECKING:
    from ltc_textgen.generation import TextChunk
    from ltc_textgen.memory import Mixture
    from ltc_textgen.model.text_state import TextState
    from ltc_textgen.runs import Run

EngineName = Literal["auto", "torch", "native", "int8"]

EXAMPLES = r"""Examples:

`ltc generate runs/book --prompt "It was" --max-tokens 300`

`ltc generate runs/book --prompt "ROMEO:" --temperature 0.7 --top-p 0.9 --seed 1 --stop "JULIET:"`

`ltc generate runs/book --prompt "It was" --stop '\n'` (to the end of the line)

`ltc generate runs/book --prompt - < letter.txt` (the prompt from stdin)

`ltc generate runs/book --prompt "It was" --num-samples 4 --json`

`ltc generate runs/book --prompt-file chapter.txt --adapt` (first learn from the prompt)

`ltc generate runs/book -i` (prompt after prompt)

`ltc generate runs/book --prompt-file book.txt --save-state book.state -n 0` (read once), then
`ltc generate runs/book --state book.state --prompt " And then"`
"""


@dataclass(frozen=True)
class Texts:
    """A loaded run with its sampling options.

    Args:
        run: Loaded run directory.
        sampling: How to draw.
        state: State before the prompt; None to begin as a document does.
        memory: N-gram memory of the run, with its `share`; None for the network alone.
        engine: See `generation.generate_stream`.
        as_json: Print JSON instead of text.
    """

    run: "Run"
    sampling: SamplingConfig
    state: "TextState | None" = None
    memory: "Mixture | None" = None
    engine: EngineName = "auto"
    as_json: bool = False

    def show(self, prompt: str, rest: str | None = None) -> None:
        """Print the prompt and its continuations, on stdout, and the speed on stderr.

        Args:
            prompt: Text to print before each.
            rest: Part of the prompt that `state` does not hold yet; the whole if None.
        """
        from ltc_textgen.generation import generate, generate_stream

        model, tokenizer, count = self.run.network, self.run.tokenizer, self.sampling.num_samples
        rest = prompt if rest is None else rest
        options: dict[str, Any] = {"state": self.state, "engine": self.engine, "notify": print_message}
        options["memory"] = self.memory
        if self.as_json:
            samples = [text.to_dict() for text in generate(model, tokenizer, rest, self.sampling, **options)]
            print_json({"prompt": prompt, "samples": samples, "sampling": self.sampling.model_dump(mode="json")})
            return
        chunks = generate_stream(model, tokenizer, rest, self.sampling, **options)
        ends = show_one(prompt, chunks) if count == 1 else show_many(prompt, chunks, count)
        tokens, seconds = sum(end.tokens for end in ends), max(end.seconds for end in ends)
        print_message(f"{tokens} tokens, {tokens / max(seconds, 1e-9):,.0f} tokens/s, seed {ends[0].seed}")


Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="Text to continue; - reads it from stdin.")]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompt-file", help="File with the text to continue. Its last line end, like that of stdin, is left out."
    ),
]
Interactive = Annotated[
    bool,
    typer.Option("--interactive", "-i", help="Load once, then continue each line of stdin; :help lists commands."),
]
State = Annotated[
    Path | None, typer.Option("--state", help="Continue a text that --save-state wrote; the prompt follows it.")
]
Memory = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Fraction of the run's n-gram memory, 0 (the network alone) to 1; 1 if not given.",
        show_default=False,
    ),
]
Adapt = Annotated[bool, typer.Option("--adapt", help="Let the n-gram memory learn from the prompt first.")]
SaveState = Annotated[Path | None, typer.Option("--save-state", help="Write the state after the prompt to this file.")]


def generate(
    run_dir: RunDirectory = DEFAULT_RUN,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    interactive: Interactive = False,
    max_tokens: Annotated[int | None, describe(SamplingConfig, "max_tokens", "--max-tokens", "-n")] = None,
    temperature: Annotated[float | None, describe(SamplingConfig, "temperature")] = None,
    top_k: Annotated[int | None, describe(SamplingConfig, "top_k")] = None,
    top_p: Annotated[float | None, describe(SamplingConfig, "top_p")] = None,
    min_p: Annotated[float | None, describe(SamplingConfig, "min_p")] = None,
    repetition_penalty: Annotated[float | None, describe(SamplingConfig, "repetition_penalty")] = None,
    seed: Annotated[int | None, describe(SamplingConfig, "seed")] = None,
    stop: Annotated[list[str] | None, describe(SamplingConfig, "stop")] = None,
    ignore_eos: Annotated[bool, describe(SamplingConfig, "ignore_eos", "--ignore-eos")] = False,
    num_samples: Annotated[int | None, describe(SamplingConfig, "num_samples")] = None,
    engine: Annotated[
        EngineName, typer.Option(help="native (fused, CPU), int8 (native, 8-bit weights), torch, or auto.")
    ] = "auto",
    memory: Memory = None,
    adapt: Adapt = False,
    state: State = None,
    save_state: SaveState = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt with a trained network; text is printed as it is generated."""
    options = given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=[unescaped(text) for text in stop or ()],
        ignore_eos=ignore_eos,
        num_samples=num_samples,
    )
    sampling = SamplingConfig.parse(options)
    if interactive and (prompt is not None or prompt_file is not None or save_state is not None):
        raise UsageError("--interactive reads its prompts from stdin: leave out --prompt, --prompt-file, --save-state")
    if not sampling.max_tokens and save_state is None and not interactive:
        raise UsageError("--max-tokens 0 generates nothing: it needs --save-state")
    text = "" if interactive else read_prompt(prompt, prompt_file)
    if adapt and (memory == 0 or not text):
        raise UsageError("--adapt lets the n-gram memory learn from the prompt: give one, and no --memory 0")
    from ltc_textgen.runs import load_run

    run = load_run(user_path(run_dir), prepare_torch(device, threads))
    mixture = open_memory(run, memory, text if adapt else None)
    texts = Texts(run, sampling, load_state(run, state), mixture, engine, as_json)
    if interactive:
        from ltc_textgen.cli.interactive import converse

        converse(texts)
    elif save_state is None:
        texts.show(text)
    else:
        read_and_save(texts, text, user_path(save_state))


def open_memory(run: "Run", share: float | None, prompt: str | None) -> "Mixture | None":
    """The n-gram memory of a run for generation; None if it has none, or `share` is 0.

    Args:
        run: Loaded run directory.
        share: Fraction of the memory, 0 to 1; 1 if None.
        prompt: Text that it learns from, if it is to adapt.

    Raises:
        UsageError: If `share` or a prompt was given and the run has no memory, or `share` is out of range.
    """
    if share == 0:
        return None
    from ltc_textgen.runs import memory_of

    found = memory_of(run)
    if found is None:
        if share is not None or prompt is not None:
            raise UsageError(f"{run.path} has no n-gram memory: leave out --memory and --adapt, or train with --memory")
        return None
    mixture = found.with_share(1.0 if share is None else share)
    if prompt is None:
        return mixture
    import numpy as np

    from ltc_textgen.evaluation.memory_scores import adapt
    from ltc_textgen.generation.generate import encode_prompt

    ids = encode_prompt(run.tokenizer, prompt, lambda _: None)
    return adapt(run.network, np.asarray(ids), mixture)


def unescaped(stop: str) -> str:
    r"""A stop string as it was meant in a shell, where '\n' is a backslash and a letter.

    Only a text of nothing but \n, \r and \t is changed.
    """
    if not re.fullmatch(r"(\\[nrt])+", stop):
        return stop
    return stop.replace(r"\n", "\n").replace(r"\r", "\r").replace(r"\t", "\t")


def load_state(run: "Run", path: Path | None) -> "TextState | None":
    """The state in a file of --save-state; None without a file.

    Raises:
        ArtifactError: If the file is damaged, or of another model.
        UsageError: If it holds several texts.
    """
    from ltc_textgen.model.text_state import TextState

    state = None if path is None else TextState.load(user_path(path), run.network)
    if state is not None and state.batch_size != 1:
        raise UsageError(f"{path} holds {state.batch_size} texts, --state takes one")
    return state


def read_and_save(texts: Texts, prompt: str, path: Path) -> None:
    """Read the prompt, write the state after it to a file, and print the continuation, if there is to be one."""
    import dataclasses

    import torch

    from ltc_textgen.generation.generate import encode_prompt

    state = texts.state
    if state is None or prompt:
        ids = encode_prompt(texts.run.tokenizer, prompt, print_message)
        state = texts.run.network.read(torch.tensor([ids]), state=state)
    state.save(path)
    print_message(f"{state.tokens[0]:,} tokens read, state written to {path}")
    if texts.sampling.max_tokens:
        dataclasses.replace(texts, state=state).show(prompt, "")


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from the command line, a file or stdin; empty if none was given.

    Raises:
        UsageError: If two were given, or one cannot be read.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("--prompt and --prompt-file exclude each other")
    if prompt_file is not None:
        try:
            return decoded(user_path(prompt_file).read_bytes(), f"prompt file {prompt_file}")
        except OSError as error:
            raise UsageError(f"cannot read the prompt file {prompt_file}: {os_reason(error, prompt_file)}") from None
    if prompt == "-":
        return decoded(sys.stdin.buffer.read(), "prompt on stdin")
    # Where the locale is not UTF-8, Python passes on the bytes that it could not decode as surrogates.
    return decoded(os.fsencode(prompt or "") + b"\n", "prompt")


def decoded(content: bytes, where: str) -> str:
    """A prompt from bytes, normalised, without the line end at its end, if there is one, which tools add.

    Raises:
        UsageError: If the bytes are not UTF-8, or hold a NUL.
    """
    from ltc_textgen.data.normalize import normalize

    try:
        return normalize(content.decode("utf-8"), where).removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the {where} is not UTF-8: byte {error.start}") from None


def show_one(prompt: str, chunks: Iterator["TextChunk"]) -> list["TextChunk"]:
    """Print one text as it is generated, and return its last chunk."""
    write(prompt)
    last: Any = None
    for chunk in chunks:
        write(chunk.text)
        last = chunk
    write("\n")
    return [last]


def show_many(prompt: str, chunks: Iterator["TextChunk"], count: int) -> list["TextChunk"]:
    """Print several texts in order, each as soon as those before it are complete; returns their last chunks."""
    texts, ends, shown = [""] * count, {}, 0
    for chunk in chunks:
        texts[chunk.sample] += chunk.text
        if chunk.finish_reason is not None:
            ends[chunk.sample] = chunk
        while shown in ends:
            write(f"--- sample {shown + 1} of {count}\n{prompt}{texts[shown]}\n")
            shown += 1
    return list(ends.values())
