"""When checkpoints are made, which of them stay, and what their manifests say."""

import json

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Listener, settings

from ltc_textgen.data.token_cache import prepare
from ltc_textgen.io.hashing import fingerprint
from ltc_textgen.training import checkpoint, validation
from ltc_textgen.training import loop as loop_module
from ltc_textgen.training.checkpoint import list_checkpoints, newest_checkpoint, write_checkpoint
from ltc_textgen.training.loop import train
from ltc_textgen.training.session import Watch


class MinuteASecond(Watch):
    """A clock on which every step takes twenty seconds and nothing else takes any time."""

    def __init__(self, stop, seconds=0.0):
        self.now = seconds
        super().__init__(stop, seconds, clock=lambda: self.now)

    def share(self, session, finite, loss):
        self.now += 20.0
        return super().share(session, finite, loss)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"save_minutes": 1.0}, {3, 6, 9, 10, 13, 16, 19, 20}),  # validations at 10 and 20 save as well
        ({"save_minutes": 1.0, "save_steps": 8}, {3, 6, 8, 11, 14, 16, 19, 20}),
        ({"save_steps": 8}, {8, 16, 20}),
        ({"save_steps": 8, "keep_best": 1}, {8, 10, 16, 20}),
        ({}, {10, 20}),
        ({"eval_steps": 40, "max_steps": 64}, {30, 40, 64}),
    ],
)
def test_a_checkpoint_is_made_after_so_many_steps_or_minutes(corpus, tmp_path, monkeypatch, given, steps):
    monkeypatch.setattr(loop_module, "Watch", MinuteASecond)
    written = []
    original = checkpoint.write_checkpoint

    def write(run, step, *args, **more):
        written.append(step)
        return original(run, step, *args, **more)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    run = settings(corpus, **{"max_steps": 20, "eval_steps": 10, "sample_tokens": 0, **given})
    train(run, tmp_path / "run", reporter=Listener())
    assert written == sorted(steps)


def tensors(value):
    return {part: {"a": torch.full((3,), float(value))} for part in checkpoint.PARTS}


def write(run, step, loss=None, **more):
    return write_checkpoint(run, step, tensors(step), {"step": step}, about={"val_loss": loss}, **more)


def kept(run):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(run)]


def test_the_best_stay_beside_the_last(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: None, 6: 4.0, 7: 5.0}
    for step, loss in losses.items():
        write(tmp_path, step, loss, keep=2, keep_best=2)
    assert kept(tmp_path) == [7, 6, 4, 2]
    write(tmp_path, 8, 0.5, keep=1, keep_best=1)
    assert kept(tmp_path) == [8, 2]
    assert newest_checkpoint(tmp_path, print).progress == {"step": 8}


def test_one_whose_manifest_is_damaged_is_not_among_the_best(tmp_path):
    (write(tmp_path, 1, 0.1) / "manifest.json").write_text('{"val_loss": 0.1')
    for step in (2, 3):
        write(tmp_path, step, 9.0, keep=1, keep_best=1)
    assert kept(tmp_path) == [3, 2]


def test_damaged_later_ones_never_crowd_out_the_one_just_written(tmp_path):
    for step in (10, 20, 30):
        write(tmp_path, step, keep=3)
    for step in (20, 30):
        (tmp_path / "checkpoints" / f"step-{step:08d}" / "state.safetensors").write_bytes(b"x")
    assert newest_checkpoint(tmp_path, lambda _: None).progress == {"step": 10}
    write(tmp_path, 15, keep=1)
    assert kept(tmp_path) == [15]
    assert newest_checkpoint(tmp_path, print).progress == {"step": 15}


@pytest.fixture(scope="module")
def overfitted(corpus, tmp_path_factory):
    """A run whose validations say that it is at its best at step 20 of 40."""
    out = tmp_path_factory.mktemp("saving") / "run"
    run = settings(corpus, max_steps=40, eval_steps=10, keep_best=1, save_total_limit=1, learning_rate=0.02)
    losses = iter([3.0, 1.0, 2.0, 2.5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "score_tokens", lambda *args, **more: (next(losses), 1))
        result = train(run, out, reporter=Listener())
    return run, out, result


def test_the_best_weights_survive_pruning(overfitted):
    _, out, result = overfitted
    assert kept(out) == [40, result.best_step] == [40, 20]
    last, best = list_checkpoints(out)
    at_best = load_file(best / "model.safetensors")
    for path in (out / "model.safetensors", last / "best.safetensors"):
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, at_best[name])
    assert not torch.equal(*(load_file(p / "model.safetensors")["embed_tokens.weight"] for p in (last, best)))


def test_the_manifest_holds_the_hashes_of_configuration_tokenizer_and_corpus(overfitted, corpus):
    run, out, result = overfitted
    last, best = (json.loads((path / "manifest.json").read_text()) for path in list_checkpoints(out))
    data = prepare(run.data)
    assert last["tokenizer"] == data.tokenizer.fingerprint
    assert last["corpus"] == data.corpus.fingerprint
    assert last["config"] == fingerprint(run.model_config_for(data.tokenizer.vocab_size))
    assert (
        last["versions"]["torch"] == torch.__version__.split("+")[0] or last["versions"]["torch"] == torch.__version__
    )
    assert last["val_loss"] == result.val_loss
    assert best["val_loss"] == result.best_val_loss


def test_the_only_checkpoint_is_not_lost_while_it_is_replaced(corpus, tmp_path):
    """Killed after it was set aside for a newer one of the same step."""
    out, listener = tmp_path / "run", Listener()
    given = {"eval_steps": 3, "save_total_limit": 1, "sample_tokens": 0}
    train(settings(corpus, max_steps=6, **given), out, reporter=Listener())
    (only,) = list_checkpoints(out)
    only.rename(checkpoint._aside(only))
    train(settings(corpus, max_steps=8, **given), out, resume=True, reporter=listener)
    assert listener.paces[0].step == 7
