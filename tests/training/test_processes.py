import random

import numpy as np
import pytest
import torch
from training_runs import Listener, settings

from ltc_textgen.config import ModelConfig, TrainConfig
from ltc_textgen.errors import ArtifactError, LTCError, UsageError
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.training import checkpoint, distributed
from ltc_textgen.training.distributed import Runtime, check_precision, choose_device, explaining
from ltc_textgen.training.loop import train
from ltc_textgen.training.metrics import MetricsLog
from ltc_textgen.training.optimizer import make_optimizer


@pytest.mark.parametrize("name", ["cuda:99", "mps" if not torch.backends.mps.is_available() else "cuda:99"])
def test_an_absent_device_is_rejected(name):
    with pytest.raises(UsageError, match=name):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", ""])
def test_an_unknown_device_is_rejected(name):
    with pytest.raises(UsageError, match="cuda:N"):
        choose_device(name)


def test_fp16_on_a_cpu_is_rejected_because_it_would_silently_train_in_float32(corpus, tmp_path):
    with pytest.raises(UsageError, match="fp16"):
        train(settings(corpus, max_steps=1, mixed_precision="fp16"), tmp_path / "run", reporter=Listener())
    check_precision("fp16", torch.device("cuda"))


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        assert Runtime(TrainConfig(device="cpu", threads=2)).threads == 2
        assert torch.get_num_threads() == 2
        assert Runtime(TrainConfig(device="cpu", threads=1)).threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_settings_of_a_second_run_in_a_process_are_its_own():
    assert Runtime(TrainConfig(device="cpu", mixed_precision="bf16")).accelerator.mixed_precision == "bf16"
    assert Runtime(TrainConfig(device="cpu")).accelerator.mixed_precision == "no"


def test_a_tracker_that_is_not_installed_is_rejected(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("ltc_textgen.training.metrics.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="report_to.*wandb"):
        train(settings(corpus, max_steps=1, report_to=["wandb"]), tmp_path / "run", reporter=Listener())


def test_tensorboard_logs_the_curve(corpus, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings(corpus, max_steps=20, report_to=["tensorboard"]), tmp_path / "run", reporter=Listener())
    (events,) = {path.parent for path in (tmp_path / "run" / "tracking" / "run").glob("events*")}
    read = EventAccumulator(str(events))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [10, 20]
    assert [event.step for event in read.Scalars("val_loss")] == [20]


def test_random_generators_come_back():
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    draw()
    states, torch_states = checkpoint.random_states(), checkpoint.torch_random_states(torch.device("cpu"))
    first = draw()
    assert draw() != first
    checkpoint.load_random_states(states)
    checkpoint.load_torch_random_states(torch_states, torch.device("cpu"))
    assert draw() == first


def network(**settings):
    return LiquidTimeConstantNetwork.from_settings(ModelConfig(input_size=11, hidden_size=8, **settings))


def test_tied_weights_are_kept_once_and_stay_tied():
    model, other = network(tie_embeddings=True), network(tie_embeddings=True)
    tensors = checkpoint.model_tensors(model)
    assert "embed_tokens.weight" in tensors
    assert "lm_head.projection.weight" not in tensors
    checkpoint.load_model_tensors(other, tensors)
    assert other.lm_head.projection.weight is other.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_of_another_model_are_rejected():
    with pytest.raises(ArtifactError, match="layers.1"):
        checkpoint.load_model_tensors(network(), checkpoint.model_tensors(network(num_layers=2)))
    tensors = checkpoint.model_tensors(network()) | {"layers.0.cell.recurrent_weight": torch.zeros(3, 3)}
    with pytest.raises(ArtifactError, match=r"\(8, 8\)"):
        checkpoint.load_model_tensors(network(), tensors)


def test_moments_come_back_to_their_parameters():
    model = network()
    optimizer = make_optimizer(model, TrainConfig())
    for _ in range(3):
        model(torch.randint(11, (2, 5)), labels=torch.randint(11, (2, 5))).loss.backward()
        optimizer.step()
    tensors = checkpoint.optimizer_tensors(optimizer)
    assert len(tensors) == 3 * len(list(model.parameters()))
    again = make_optimizer(model, TrainConfig())
    checkpoint.load_optimizer_tensors(again, tensors)
    for parameter in model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(again.state[parameter][key], value)
            assert again.state[parameter][key] is not value
    with pytest.raises(ArtifactError, match="strange"):
        checkpoint.load_optimizer_tensors(again, {"strange/exp_avg": torch.zeros(1)})


def test_metrics_have_no_nan_and_are_cut_back_to_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.sync() == 0
    log.append({"step": 1, "loss": float("nan")})
    length = log.sync()
    log.append({"step": 2, "sample": "é"})
    log.truncate(length)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


def test_the_process_group_waits_for_half_an_hour_at_a_meeting_of_our_own(monkeypatch):
    from accelerate.utils import InitProcessGroupKwargs

    given = []
    original = distributed.Accelerator

    def spy(**arguments):
        given.extend(arguments["kwargs_handlers"])
        return original(**arguments)

    monkeypatch.setattr(distributed, "Accelerator", spy)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    Runtime(TrainConfig(device="cpu"))
    (group,) = (handler for handler in given if isinstance(handler, InitProcessGroupKwargs))
    assert group.timeout.total_seconds() == 30 * 60
    assert group.init_method == "ltc-attempt://"


def test_a_lost_process_is_an_error_of_one_line():
    with pytest.raises(LTCError, match=r"30 minutes.*--resume") as caught, explaining():
        raise RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1ms for recv operation")
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="of ours"), explaining():
        raise RuntimeError("of ours")
