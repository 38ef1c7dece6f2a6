"""The program and the page, without a network: chance, draws, and text, against the package's own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub import bert_tokenizer_json
from outcomes import Outcome
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ltc_textgen.config import SamplingConfig
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.data.train_tokenizer import byte_tokenizer, character_tokenizer, train_wordpiece
from ltc_textgen.export.host import generate
from ltc_textgen.export.host.network import ExportError, Files, UseError, description_digest
from ltc_textgen.generation.sampling import UniformStreams, draw, shape_logits
from ltc_textgen.io.checked import sha256_file

HOST = Path(generate.__file__).parent
PROSE = "The cat sat on the mat, and the dog didn't.\n\n  Indented é text: 😀 日本語\ttab\r\n" * 5
HARD = [
    "",
    " ",
    "\n\n\n\n\n\n\n",
    "x" * 300,
    " " * 60 + "\t" * 40 + "\r\r\r",
    "a<|separator|>b [SEP] </s> ▁ ##ing Ġ",
    "\x00\x01\x7f \u2028\u2029\u0085 e\u0301\u0301 👩‍👩‍👧 𝔘𝔫𝔦 \ufeff \ufffd \u0130ΑΣ",
    "don't I'll WE'VE 'tis 12345678 1,000.50 --- !!!!!!!!!!!!!!!!!!!!",
    "He said: \" the ' cat ' sat \" ( on the ) mat .",
    PROSE,
]
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
MODULES = os.environ.get("LTC_NODE_MODULES")


def sentencepiece_like() -> TextTokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([PROSE], trainer)
    return TextTokenizer(made.to_str(), "custom", "</s>")


def tokenizer(kind: str) -> TextTokenizer:
    return {
        "custom": sentencepiece_like,
        "char": lambda: character_tokenizer(PROSE),
        "byte": byte_tokenizer,
        "wordpiece": lambda: train_wordpiece([PROSE], 700),
        "bert": lambda: TextTokenizer(bert_tokenizer_json(), "bert", "[SEP]"),
    }[kind]()


def write_text_files(directory: Path, made: TextTokenizer) -> dict[str, Any]:
    about = {
        "format": 2,
        "tokenizer": made.kind,
        "tokenizer_sha256": made.fingerprint,
    }
    about |= {"eos_token_id": made.eos_token_id}
    about |= {"vocab_size": made.vocab_size, "states": [], "time_constants": []}
    (directory / "tokenizer.json").write_text(made.content, encoding="utf-8")
    (directory / "decoding.json").write_text(json.dumps(made.decoding_table()), encoding="utf-8")
    for source in (HOST / "ltc.js", HOST.parent.parent / "data" / "detokenize.py"):
        shutil.copy(source, directory)
    (directory / "package.json").write_text('{"type": "module"}')
    write_description(directory, about)
    return about


def write_description(directory: Path, about: dict[str, Any]) -> None:
    """Write export.json with the checksums of what lies in the directory."""
    hashes = {path.name: sha256_file(path) for path in directory.iterdir() if path.name != "export.json"}
    content = about | {"files": hashes}
    (directory / "export.json").write_text(json.dumps(content | {"sha256": description_digest(content)}))


def text_of(directory: Path, made: TextTokenizer) -> generate.Text:
    about = write_text_files(directory, made)
    return generate.Text(Files(directory), about)


def node(directory: Path, request: dict[str, Any], *modules: str) -> dict[str, Any]:
    assert NODE is not None
    command = [NODE, str(Path(__file__).parent / "host.mjs"), str(directory), *modules]
    result = subprocess.run(
        command, input=json.dumps(request), capture_output=True, encoding="utf-8", timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def streamed(stream: Any, ids: list[int]) -> str:
    return "".join([stream.push(token) for token in ids]) + stream.flush()


@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece", "bert", "custom"])
def test_the_program_reads_and_writes_as_the_package(kind: str, tmp_path: Path) -> None:
    made = tokenizer(kind)
    text = text_of(tmp_path, made)
    drawn = np.random.default_rng(0).integers(made.vocab_size, size=400).tolist()
    for hard in HARD:
        assert text.encode(hard) == made.encode(hard), hard
        assert streamed(text.stream(), made.encode(hard)) == made.decode(made.encode(hard))
    assert streamed(text.stream(), drawn) == made.decode(drawn)


def test_the_decoding_of_another_export_is_rejected(tmp_path: Path) -> None:
    about = write_text_files(tmp_path, tokenizer("char"))
    (tmp_path / "decoding.json").write_text(json.dumps(byte_tokenizer().decoding_table()), encoding="utf-8")
    with pytest.raises(ExportError, match=r"decoding\.json"):
        generate.Text(Files(tmp_path), about)
    write_description(tmp_path, about)
    with pytest.raises(ExportError, match=r"decoding\.json"):
        generate.Text(Files(tmp_path), about)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_characters_and_bytes_need_no_tokenizers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer(kind)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert text_of(tmp_path, made).encode(PROSE) == made.encode(PROSE)
    monkeypatch.undo()
    others = tmp_path / "others"
    others.mkdir()
    about = write_text_files(others, tokenizer("wordpiece"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UseError, match="tokenizers"):
        generate.Text(Files(others), about)


def test_unknown_characters_are_named(tmp_path: Path) -> None:
    notes: list[str] = []
    text = text_of(tmp_path, character_tokenizer("abc "))
    text.prompt("abc", notes.append)
    assert notes == []
    text.prompt("Zürich? abc", notes.append)
    for character in "Zürih?":
        assert repr(character) in notes[0]
    assert "'c'" not in notes[0]


def test_a_file_that_is_not_of_the_directory_is_rejected(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    write_text_files(inside, tokenizer("char"))
    for name in ("tokenizer.json", "export.json"):
        (inside / name).rename(tmp_path / name)
        (inside / name).symlink_to(tmp_path / name)
        with pytest.raises(ExportError, match=name):
            Files(inside).read(name)
        (inside / name).unlink()
        os.mkfifo(inside / name)
        with pytest.raises(ExportError, match=name):
            Files(inside).read(name)
        (inside / name).unlink()
        (tmp_path / name).rename(inside / name)
    assert Files(inside).read("tokenizer.json")


WRONG: list[tuple[str, object]] = [
    ("format", 1), ("vocab_size", 0), ("vocab_size", True), ("vocab_size", 1e3), ("eos_token_id", -1),
    ("eos_token_id", 10**6), ("tokenizer", None), ("tokenizer_sha256", 3), ("states", {}), ("states", [[]]),
    ("time_constants", "tau"), ("files", []),
    ("states", [{"name": "a", "next": "b", "shape": [2], "initial": [0.0]}]),
    ("states", [{"name": "a", "next": "b", "shape": [2], "initial": [0.0, "1"]}]),
    ("states", [{"name": "a", "next": "b", "shape": [2], "initial": 10**400}]),
    ("states", [{"name": "a", "next": "b", "shape": [2**30, 2**30], "initial": 0.0}]),
    ("states", [{"name": "a", "next": "b", "shape": [-2], "initial": 0.0}]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_description_of_wrong_types_or_sizes_is_rejected(key: str, value: object, tmp_path: Path) -> None:
    about = write_text_files(tmp_path, tokenizer("byte")) | {"files": {}}
    Files(tmp_path)
    content = about | {key: value}
    (tmp_path / "export.json").write_text(json.dumps(content | {"sha256": description_digest(content)}))
    with pytest.raises(ExportError, match=key):
        Files(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b"{" * 100_000, b'{"a":' * 100_000, b'{"format": 1' + b"1" * 5000 + b"}", b'{"format": NaN}'],
    ids=range(7),
)
def test_a_description_that_is_no_json_object_is_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"export\.json"):
        Files(tmp_path)


@pytest.mark.parametrize("letter", ["unknown", "first"])
def test_ids_of_a_tokenizer_must_be_ids_of_the_network(letter: str, tmp_path: Path) -> None:
    about = write_text_files(tmp_path, tokenizer("char"))
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    words = document["model"]["vocab"]
    words[document["model"]["unk_token"] if letter == "unknown" else next(iter(words))] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    about["tokenizer_sha256"] = sha256_file(tmp_path / "tokenizer.json")
    write_description(tmp_path, about)
    with pytest.raises(ExportError, match=r"tokenizer\.json"):
        generate.Text(Files(tmp_path), about)


def test_control_characters_are_escaped_for_a_terminal() -> None:
    assert generate.printable("a\tb\n\x1b]0;x\x07é\x9b\x7f\r") == "a\tb\n\\x1b]0;x\\x07é\\x9b\\x7f\\x0d"


VANISHING = [(0.0, 1.0), (1e-46, 1.0), (1e-45, 1.0), (1.0, 1e-300), (1.0, 1e-46)]


@pytest.mark.parametrize(("temperature", "top_p"), VANISHING)
def test_numbers_that_vanish_in_float32_choose_the_likeliest(temperature: float, top_p: float) -> None:
    logits = np.array([0.5, 3.0, -np.inf, 2.9], np.float32)
    assert generate.choose(logits, generate.Uniform(0), temperature, 0, top_p) == 1


@needs_node
@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece", "bert"])
def test_the_page_reads_and_writes_as_the_package(kind: str, tmp_path: Path) -> None:
    made = tokenizer(kind)
    write_text_files(tmp_path, made)
    drawn = [np.random.default_rng(seed).integers(made.vocab_size, size=400).tolist() for seed in range(3)]
    answer = node(tmp_path, {"texts": HARD, "ids": [made.encode(text) for text in HARD] + drawn})
    for text, ids in zip(HARD, answer["ids"], strict=True):
        assert ids == made.encode(text), text
    assert answer["texts"] == [made.decode(made.encode(text)) for text in HARD] + [made.decode(ids) for ids in drawn]


def test_a_seed_gives_the_numbers_of_ltc_generate() -> None:
    for seed in (0, 7, 2**62 + 5):
        theirs, ours = UniformStreams(seed, range(1)), generate.Uniform(seed)
        assert [ours.next() for _ in range(600)] == [float(theirs.next()) for _ in range(600)]


SETTINGS = [{"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 4}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.9}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_are_those_of_ltc_generate(settings: dict[str, float], tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    logits = chance.normal(size=30).astype(np.float32) * 2
    uniform = chance.random(200)
    whole = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    shaped = shape_logits(torch.tensor(logits)[None], SamplingConfig(**whole))
    theirs = [
        int(shaped.argmax()) if whole["temperature"] == 0 else int(draw(shaped, torch.tensor([u]))) for u in uniform
    ]

    class Given(generate.Uniform):
        def __init__(self) -> None:
            self.numbers = iter(uniform)

        def next(self) -> float:
            return float(next(self.numbers))

    given = Given()
    assert [generate.choose(logits, given, **whole) for _ in uniform] == theirs
    if NODE is not None:
        write_text_files(tmp_path, tokenizer("byte"))
        names = {"temperature": whole["temperature"], "topK": whole["top_k"], "topP": whole["top_p"]}
        # The page draws likeliest first, so its draws are another order of the same distribution.
        answer = node(
            tmp_path,
            {"logits": logits.tolist(), "uniform": ((np.arange(2000) + 0.5) / 2000).tolist(), "settings": names},
        )
        counts = np.bincount(answer["chosen"], minlength=30) / 2000
        expected = shaped.softmax(1)[0].numpy() if whole["temperature"] else np.eye(30)[theirs[0]]
        np.testing.assert_allclose(counts, expected, atol=1.5 / 2000)


def test_logits_that_are_broken_are_rejected() -> None:
    for broken in (np.full(4, np.nan, np.float32), np.full(4, -np.inf, np.float32)):
        with pytest.raises(ValueError, match="logits"):
            generate.choose(broken, generate.Uniform(0), 0.8, 0, 1.0)


@needs_node
@pytest.mark.skipif(MODULES is None, reason="LTC_NODE_MODULES names no folder with onnxruntime-web")
def test_the_page_writes_the_text_of_ltc_generate(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    out = tmp_path / "out"
    assert ltc("export", run, "--out", out).code == 0
    (out / "package.json").write_text('{"type": "module"}')
    answer = node(out, {"prompt": "On day 7", "maxTokens": 100}, str(MODULES))
    options = ("--temperature", 0, "--ignore-eos", "--max-tokens", 100)
    assert "On day 7" + answer["written"] + "\n" == ltc("generate", run, "--prompt", "On day 7", *options).out
    assert len(answer["tau"]) == 1
    assert min(answer["tau"][0]) > 0
