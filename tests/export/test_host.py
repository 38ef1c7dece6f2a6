"""The program and the page, without a network: chance, draws, and text, against the package's own."""

import json
import os
import shutil
import subprocess
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
from ltc_textgen.generation.sampling import UniformStreams, draw, shape_logits

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
    about = {"format": 1, "tokenizer": made.kind, "tokenizer_sha256": made.fingerprint, "separator": made.separator_id}
    about["vocabulary"] = made.vocab_size
    (directory / "export.json").write_text(json.dumps(about))
    (directory / "tokenizer.json").write_text(made.content, encoding="utf-8")
    (directory / "decoding.json").write_text(json.dumps(made.decoding_table()), encoding="utf-8")
    for source in (HOST / "ltc.js", HOST.parent.parent / "data" / "detokenize.py"):
        shutil.copy(source, directory)
    (directory / "package.json").write_text('{"type": "module"}')
    return about


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
    text = generate.Text(tmp_path, write_text_files(tmp_path, made))
    drawn = np.random.default_rng(0).integers(made.vocab_size, size=400).tolist()
    for hard in HARD:
        assert text.encode(hard) == made.encode(hard), hard
        assert streamed(text.stream(), made.encode(hard)) == made.decode(made.encode(hard))
    assert streamed(text.stream(), drawn) == made.decode(drawn)


def test_the_program_refuses_the_decoding_of_another_export(tmp_path: Path) -> None:
    about = write_text_files(tmp_path, tokenizer("char"))
    (tmp_path / "decoding.json").write_text(json.dumps(byte_tokenizer().decoding_table()), encoding="utf-8")
    with pytest.raises(ValueError, match=r"decoding\.json is not the one"):
        generate.Text(tmp_path, about)


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


def test_logits_that_are_broken_are_refused() -> None:
    for broken in (np.full(4, np.nan, np.float32), np.full(4, -np.inf, np.float32)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            generate.choose(broken, generate.Uniform(0), 0.8, 0, 1.0)


@needs_node
@pytest.mark.skipif(MODULES is None, reason="LTC_NODE_MODULES names no folder with onnxruntime-web")
def test_the_page_writes_the_text_of_ltc_generate(run: Path, tmp_path: Path, ltc: Callable[..., Outcome]) -> None:
    out = tmp_path / "out"
    assert ltc("export", run, "--out", out).code == 0
    (out / "package.json").write_text('{"type": "module"}')
    answer = node(out, {"prompt": "On day 7", "maxTokens": 100}, str(MODULES))
    options = ("--temperature", 0, "--ignore-separator", "--max-tokens", 100)
    assert "On day 7" + answer["written"] + "\n" == ltc("generate", run, "--prompt", "On day 7", *options).out
    assert len(answer["tau"]) == 1
    assert min(answer["tau"][0]) > 0
