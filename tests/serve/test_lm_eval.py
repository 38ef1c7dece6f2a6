"""EleutherAI's evaluation harness over HTTP, with the server's tokenizer: the numbers are the network's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from serving import Serving

from ltc_textgen.runs import Run

pytest.importorskip("lm_eval", reason="pip install lm-eval")
pytest.importorskip("tenacity", reason="pip install lm-eval[api]")

PAIRS = [("it was a", " day at sea"), ("", "the sea"), ("the boat", " came home.\n"), ("calm,", " and")]


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each, task_name="story") for each in arguments]


def loglikelihood(run: Run, context: str, continuation: str) -> tuple[float, bool]:
    """Log-probability of a continuation, and whether every token of it is the likeliest."""
    before = run.tokenizer.encode(context) or [run.tokenizer.eos_token_id]
    ids = torch.tensor([[*before, *run.tokenizer.encode(continuation)]])
    with torch.no_grad():
        logprobs = run.network.lm_head.logits(run.network.advance(ids)[0])[0].log_softmax(1)
    own = range(len(before) - 1, ids.shape[1] - 1)
    targets = ids[0, len(before) :]
    values = logprobs[list(own), targets]
    return float(values.sum()), bool((logprobs[list(own)].argmax(1) == targets).all())


@pytest.mark.filterwarnings("ignore")
def test_the_harness_measures_what_the_network_gives(server: Serving, loaded: dict[str, Run]) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    name = "chars"  # the first model, whose tokenizer is asked

    lm = LocalCompletionsAPI(
        model=name,
        base_url=f"{server.url}/v1/completions",
        tokenizer_backend="remote",
        batch_size=3,
        max_length=256,
    )
    found = lm.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    expected = [loglikelihood(loaded[name], *pair) for pair in PAIRS]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    (text,) = lm.generate_until(requests(("it was", {"until": ["\n"], "max_gen_toks": 20})), disable_tqdm=True)
    assert len(text) > 0
