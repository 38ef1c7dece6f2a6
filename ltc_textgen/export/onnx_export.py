"""`export_onnx`: a run as a directory that needs neither PyTorch nor this package.

OUT/model.onnx         the single-step graph, in float32
OUT/model.int8.onnx    the same with int8 matrices, if requested
OUT/export.json        names, shapes, measurements, the SHA-256 of every other file, and one of itself
OUT/tokenizer.json     the tokenizer;  OUT/decoding.json: what each id decodes to;  OUT/detokenize.py: how tokens join
OUT/generate.py        a program that generates text (onnxruntime, numpy);  OUT/network.py: the part without options
OUT/index.html ...     a page that does (onnxruntime-web)
OUT/README.md
"""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import DataError, LTCError
from ltc_textgen.evaluation import tokenize
from ltc_textgen.export import check, int8, onnx_graph
from ltc_textgen.export.host.network import FORMAT, Network, description_digest
from ltc_textgen.export.step import TokenStep
from ltc_textgen.io.atomic import new_directory
from ltc_textgen.io.checked import sha256_file, write_json
from ltc_textgen.io.hashing import digest, own_tensors
from ltc_textgen.runs import Run

MODEL, SMALL, MANIFEST = "model.onnx", "model.int8.onnx", "export.json"
HOST_FILES = ("generate.py", "network.py", "index.html", "page.js", "ltc.js")
MOST_LOSS = 1.0
"""Increase of perplexity that int8 may cause, in percent."""

CHARACTERS = 400_000
"""Largest part of a document that is tokenised; `check.CHAINED` tokens are needed."""

Bar = Callable[[str], AbstractContextManager[check.Progress | None]]


@dataclass(frozen=True)
class Exported:
    """Measurements of an export.

    Args:
        directory: The export.
        bytes: Size of model.onnx.
        tokens: Length of the chain over which it was compared with PyTorch.
        max_difference: Largest difference of a logit over it.
        tokens_per_second: Speed for one sequence on one thread of this machine.
        int8: The same of model.int8.onnx, None without one: `bytes`, `tokens_per_second`, `perplexity`,
            `perplexity_float32`, `loss_percent`, `text_tokens` (tokens of the text; one shorter than `tokens` was
            repeated), `tokens` (tokens scored).
    """

    directory: Path
    bytes: int
    tokens: int
    max_difference: float
    tokens_per_second: float
    int8: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The measurements as JSON types."""
        return asdict(self) | {"directory": str(self.directory)}


def export_onnx(
    run: Run,
    out: Path,
    *,
    text: Iterable[str] | None = None,
    most_loss: float = MOST_LOSS,
    overwrite: bool = False,
    notify: Callable[[str], None] = lambda _: None,
    bar: Bar = lambda _: nullcontext(),
) -> Exported:
    """Export a network to ONNX; the directory appears only after the graph was compared with PyTorch.

    Args:
        run: A loaded run directory, on the CPU.
        out: Directory to create.
        text: Documents on which an int8 variant is measured; without them there is none.
        most_loss: Increase of perplexity that int8 may cause, in percent.
        overwrite: Replace an export at `out`.
        notify: Called with a line on what is being done.
        bar: Opens a progress bar with a title.

    Raises:
        UsageError: If a package is missing, `out` exists and is not replaced, or the network cannot be exported.
        DataError: If the text has no tokens.
        LTCError: If the graph differs from PyTorch, or int8 costs more than `most_loss`.
    """
    onnx_graph.require_packages()
    step = TokenStep(run.network)
    onnx_graph.require_exportable(step)
    stream = None if text is None else stream_of(run.tokenizer, text)
    with new_directory(out, MANIFEST, overwrite) as directory:
        notify("tracing the graph")
        model = onnx_graph.build(step, describe(run))
        path = directory / MODEL
        path.write_bytes(model.SerializeToString())
        exported = Network(path)
        with bar("checking") as progress:
            difference = check.compare(run.network, exported, tokens=check.CHAINED, progress=progress)
        small = None
        if stream is not None:
            small_path = directory / SMALL
            int8.quantize(model, small_path)
            small = measure_int8(exported, Network(small_path), stream, most_loss, bar)
            small["bytes"] = small_path.stat().st_size
        rate = check.tokens_per_second(exported)
        result = Exported(out, path.stat().st_size, check.CHAINED, difference, rate, small)
        write_host_files(directory, run, exported.about, result)
    return result


def describe(run: Run) -> dict[str, Any]:
    """The description stored in the graph, but for the names that `onnx_graph.build` adds. Nothing of this machine."""
    return {
        "format": FORMAT,
        "writer": f"ltc-textgen {version('ltc-textgen')}",
        "vocab_size": run.tokenizer.vocab_size,
        "tokenizer": run.tokenizer.kind,
        "tokenizer_sha256": run.tokenizer.fingerprint,
        "eos_token_id": run.tokenizer.eos_token_id,
        "start_id": run.tokenizer.start_id,
        "weights_sha256": digest(own_tensors(run.network)),
        "network": run.network.settings.model_dump(mode="json", exclude_defaults=True),
    }


def stream_of(tokenizer: TextTokenizer, documents: Iterable[str]) -> np.ndarray:
    """The first `check.CHAINED` + 1 tokens of a text, or all of a shorter one.

    Raises:
        DataError: If there are fewer than two.
    """
    parts: list[np.ndarray] = []
    for document in documents:
        parts.append(tokenize(tokenizer, [document[:CHARACTERS]])[0])
        if sum(map(len, parts)) > check.CHAINED:
            break
    stream = np.concatenate(parts)[: check.CHAINED + 1] if parts else np.empty(0, np.uint32)
    if len(stream) < 2:
        raise DataError("the text on which int8 is measured has fewer than 2 tokens: give a longer file with --data")
    return stream.astype(np.int64)


def measure_int8(exported: Network, small: Network, stream: np.ndarray, most_loss: float, bar: Bar) -> dict[str, Any]:
    """Perplexity and speed of the int8 variant, compared with the float32 graph.

    Raises:
        LTCError: If perplexity increases by more than `most_loss` percent.
    """
    tokens = np.resize(stream, check.CHAINED + 1)
    with bar("reading") as progress:
        whole = check.perplexity(exported, tokens, progress)
    with bar("reading in int8") as progress:
        reduced = check.perplexity(small, tokens, progress)
    loss = 100 * (reduced / whole - 1)
    if not loss <= most_loss:
        raise LTCError(
            f"export: int8 raises perplexity by {loss:.2f} % ({whole:.4g} to {reduced:.4g}), more than "
            f"{most_loss:g} %: export without --int8, or raise --int8-limit; nothing was written"
        )
    return {
        "tokens": check.CHAINED,
        "text_tokens": len(stream),
        "perplexity_float32": whole,
        "perplexity": reduced,
        "loss_percent": loss,
        "tokens_per_second": check.tokens_per_second(small),
    }


def write_host_files(directory: Path, run: Run, about: dict[str, Any], result: Exported) -> None:
    """Write everything but the models, export.json last."""
    host = files("ltc_textgen.export") / "host"
    for name in HOST_FILES:
        (directory / name).write_bytes((host / name).read_bytes())
    decoding = files("ltc_textgen.data") / "detokenize.py"
    (directory / "detokenize.py").write_bytes(decoding.read_bytes())
    (directory / "tokenizer.json").write_text(run.tokenizer.content, encoding="utf-8")
    table = json.dumps(run.tokenizer.decoding_table(), ensure_ascii=False)
    (directory / "decoding.json").write_text(table, encoding="utf-8")
    readme = Template((host / "README.template.md").read_text(encoding="utf-8"))
    (directory / "README.md").write_text(readme.substitute(_facts(about, result)), encoding="utf-8")
    hashes = {path.name: sha256_file(path) for path in sorted(directory.iterdir())}
    measured = {key: value for key, value in result.to_dict().items() if key != "directory"}
    content = about | {"files": hashes, "measured": measured}
    write_json(directory / MANIFEST, content | {"sha256": description_digest(content)})


def _facts(about: dict[str, Any], result: Exported) -> dict[str, str]:
    """The values of README.template.md for this network."""
    rows = [("`token`", "int64", "(batch,)", "id, 0 to " + str(about["vocab_size"] - 1))]
    rows += [("`elapsed`", "float32", "(batch,)", "time to the next token; 1 for ordinary text")]
    rows += [
        (f"`{state['name']}`", "float32", str(("batch", *state["shape"])).replace("'", ""), f"`{state['next']}`")
        for state in about["states"]
    ]
    small = result.int8
    note = (
        ""
        if small is None
        else (
            f"\n`model.int8.onnx` has its matrices in 8 bits: {small['bytes'] / 1e6:.2f} MB, "
            f"{small['loss_percent']:+.2f} % perplexity over {small['tokens']:,} tokens.\n"
        )
    )
    return {
        "inputs": "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "vocab_size": str(about["vocab_size"]),
        "constants": ", ".join(f"`{name}`" for name in about["time_constants"]),
        "difference": f"{result.max_difference:.1e}",
        "tokens": f"{result.tokens:,}",
        "size": f"{result.bytes / 1e6:.2f} MB",
        "eos_token_id": str(about["eos_token_id"]),
        "int8": note,
    }
