"""The network in EleutherAI's evaluation harness: its numbers are ours."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub import bert_tokenizer_json
from outcomes import STORY
from transformers import AutoModelForCausalLM, AutoTokenizer

from ltc_textgen.config import RunConfig
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.data.train_tokenizer import character_tokenizer, read_tokenizer
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.runs import save_run, save_weights

pytest.importorskip("lm_eval", reason="pip install lm-eval")

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

SETTINGS = {"block": "liquid", "coupling": "diagonal", "hidden_size": 12, "num_layers": 2, "steps": 2, "step_size": 0.5}
CHARACTERS = character_tokenizer(STORY)
LENGTH = 64


def directory(path: Path, own: TextTokenizer) -> Path:
    torch.manual_seed(0)
    config = RunConfig.parse({"model": SETTINGS})
    model = LiquidTimeConstantNetwork.from_settings(config.model_config_for(own.vocab_size))
    with torch.no_grad():  # untrained, it would write what makes no text
        model.lm_head.projection.bias[[own.eos_token_id, own.unk_token_id, *own.encode("\n")]] = -20.0
    save_run(path, model, own, config, {})
    save_weights(path / "model.safetensors", model, {"tokenizer": own.fingerprint})
    return path


def harness(path: Path, **options: Any) -> Any:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=LENGTH, **{"batch_size": 4} | options)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("runs") / "characters", CHARACTERS)


@pytest.fixture(scope="module")
def lm(run_directory: Path) -> Any:
    return harness(run_directory)


def requests(*arguments: tuple) -> list[Any]:
    return [SimpleNamespace(args=each, task_name="story") for each in arguments]


@torch.no_grad()
def log_likelihood(model: LiquidTimeConstantNetwork, context: list[int], continuation: list[int]) -> float:
    """ln p(continuation | context), of a text of its own."""
    ids = torch.tensor([context + continuation])
    scores = model(ids[:, :-1]).logits.double().log_softmax(-1)[0].gather(1, ids[0, 1:, None])
    return scores[-len(continuation) :].sum().item()


PAIRS = [("On day 7 the sea was", " calm"), ("On day 7 the sea was", " wild, and"), ("the", " boat"), ("", "home")]


def test_likelihoods_are_ours(lm: Any) -> None:
    found = lm.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        before = CHARACTERS.encode(context) or [CHARACTERS.eos_token_id]
        expected = log_likelihood(lm.model, before, CHARACTERS.encode(continuation))
        assert value == pytest.approx(expected, rel=1e-4)
        assert not greedy, "of an untrained model"
    assert lm.prefix_token_id == CHARACTERS.eos_token_id, "before a text stands what stood there in training"


@pytest.mark.parametrize("size", [30, 64, 150])
def test_rolling_likelihoods_are_ours(size: int, lm: Any) -> None:
    """In windows of 64 tokens, the first of which is context; the last window reaches back to be full."""
    text = STORY[:size]
    (found,) = lm.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    stream, expected = [CHARACTERS.eos_token_id, *CHARACTERS.encode(text)], 0.0
    for start in range(0, size, LENGTH):
        count = min(LENGTH, size - start)
        first = start if count == LENGTH or start == 0 else size - LENGTH
        expected += log_likelihood(lm.model, stream[first : start + 1], stream[start + 1 : start + 1 + count])
    assert found == pytest.approx(expected, rel=1e-4)


def test_texts_are_ours(lm: Any) -> None:
    prompts = ["On day 7 the sea was", "the boat"]
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    found = lm.generate_until(requests(*((prompt, settings) for prompt in prompts)), disable_tqdm=True)
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.tensor([CHARACTERS.encode(prompt)])
        whole = lm.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert text == lm.tokenizer.decode(whole, skip_special_tokens=True).split("\n")[0]
        assert len(text) > 4
    stop = found[0][4]
    (short,) = lm.generate_until(requests((prompts[0], settings | {"until": [stop]})), disable_tqdm=True)
    assert short == found[0].split(stop)[0]


TASK = """task: story
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_a_task_of_ones_own(lm: Any, tmp_path: Path) -> None:
    questions = [
        {"question": f"On day {day} the sea was", "choices": ["calm", "wild", "home"], "answer": day % 3}
        for day in range(9)
    ]
    (tmp_path / "story.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "story.yaml").write_text(TASK.format(file=tmp_path / "story.jsonl"))
    tasks = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False).load(["story"])
    result = evaluate(lm, tasks, bootstrap_iters=0)
    right = 0
    for line in questions:
        context = CHARACTERS.encode(line["question"])
        scores = [log_likelihood(lm.model, context, CHARACTERS.encode(" " + choice)) for choice in line["choices"]]
        right += scores.index(max(scores)) == line["answer"]
    assert 0 < right < 9, "otherwise the test shows nothing"
    assert result["results"]["story"]["acc,none"] == pytest.approx(right / 9)


def test_bert_needs_an_option_for_texts_without_a_start_token(tmp_path: Path) -> None:
    """Its tokenizer puts [CLS] before and [SEP] after every text, which the network has never seen."""
    (tmp_path / "tokenizer.json").write_text(bert_tokenizer_json())
    own = read_tokenizer(tmp_path / "tokenizer.json", "bert")
    lm = harness(directory(tmp_path / "run", own), add_bos_token=False)
    assert lm.prefix_token_id == own.eos_token_id
    pairs = [("the river crossed", " the city"), ("", "a king")]
    found = lm.loglikelihood(requests(*pairs), disable_tqdm=True)
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        before = own.encode(context) or [own.eos_token_id]
        assert value == pytest.approx(log_likelihood(lm.model, before, own.encode(continuation)), rel=1e-4)
    (rolling,) = lm.loglikelihood_rolling(requests(("the river crossed the city",)), disable_tqdm=True)
    ids = own.encode("the river crossed the city")
    assert rolling == pytest.approx(log_likelihood(lm.model, [own.eos_token_id], ids), rel=1e-4)
