"""What a text without a prompt starts after: the EOS token, or a line end where few documents taught the former."""

import json
from pathlib import Path

import pytest
from training_runs import Listener, settings

from ltc_textgen.config import DataConfig
from ltc_textgen.data.token_cache import prepare
from ltc_textgen.data.tokenizers import FEW_DOCUMENTS
from ltc_textgen.generation.generate import encode_prompt
from ltc_textgen.runs import load_run
from ltc_textgen.training.loop import train


@pytest.mark.parametrize("tokenizer", ["char", "byte", "wordpiece"])
def test_one_book_starts_after_a_line_end(corpus, tokenizer) -> None:
    data = prepare(DataConfig(data=str(corpus), tokenizer=tokenizer))
    ids = encode_prompt(data.tokenizer, "", lambda _: None)
    assert (data.documents, ids) == (1, [data.tokenizer.start_id])
    assert data.tokenizer.decode(ids) == "\n"


def test_many_documents_start_after_the_eos_token(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"line {n} of\nsome text"}) + "\n" for n in range(2 * FEW_DOCUMENTS)))
    data = prepare(DataConfig(data=str(rows), tokenizer="char"))
    assert data.documents >= FEW_DOCUMENTS
    assert encode_prompt(data.tokenizer, "", lambda _: None) == [data.tokenizer.eos_token_id]


def test_a_run_remembers_it(corpus, tmp_path) -> None:
    train(settings(corpus, max_steps=1), tmp_path / "run", reporter=Listener())
    loaded = load_run(tmp_path / "run").tokenizer
    assert loaded.decode([loaded.start_id]) == "\n"
    training = tmp_path / "run" / "training.json"
    content = json.loads(training.read_text())
    del content["facts"]["documents"]  # of an earlier version
    training.write_text(json.dumps(content))
    loaded = load_run(tmp_path / "run").tokenizer
    assert loaded.start_id == loaded.eos_token_id
