"""`ltc export`: what the directory holds, that it is the network, and what is rejected."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from outcomes import STORY, Outcome
from safetensors import safe_open

from ltc_textgen.errors import LTCError, UsageError
from ltc_textgen.export import TokenStep, check, onnx_export, onnx_graph
from ltc_textgen.export.host import generate
from ltc_textgen.export.host.network import METADATA, ExportError, Network
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.io.checked import sha256_file
from ltc_textgen.runs import load_run

pytestmark = pytest.mark.slow

# Runs the program where neither PyTorch nor this package can be imported.
ALONE = """
import runpy, sys
for name in ("torch", "transformers", "ltc_textgen", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path[0] = {directory!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export by the command, with int8; chains of 2,000 tokens in place of 10,000, to be quick."""
    from ltc_textgen.cli import main

    out = tmp_path_factory.mktemp("exports") / "story é"
    assert check.CHAINED == 10_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "CHAINED", 2000)
        assert main.run(["export", str(run), "--int8", "--out", str(out)]) == 0
    return out


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of 50 tokens, for tests of something else."""
    monkeypatch.setattr(check, "CHAINED", 50)
    monkeypatch.setattr(check, "tokens_per_second", lambda network: 1.0)


@pytest.fixture
def built(exported: Path, monkeypatch: pytest.MonkeyPatch, short: None) -> onnx.ModelProto:
    """The graph of `exported`, given in place of a new one."""
    model = onnx.load(exported / "model.onnx")
    monkeypatch.setattr(onnx_graph, "build", lambda step, description: model)
    return model


def alone(directory: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = ALONE.format(directory=str(directory))
    command = [sys.executable, "-c", code, str(directory / "generate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


# --- what is written


@pytest.mark.slow
def test_the_directory_holds_what_it_says(exported: Path, run: Path) -> None:
    about = json.loads((exported / "export.json").read_text())
    names = {path.name for path in exported.iterdir()}
    assert names == set(about["files"]) | {"export.json"}
    assert {"model.onnx", "model.int8.onnx", "tokenizer.json", "generate.py", "index.html", "README.md"} <= names
    assert all(sha256_file(exported / name) == digest for name, digest in about["files"].items())
    with safe_open(run / "model.safetensors", framework="pt") as file:
        assert about["weights_sha256"] == file.metadata()["sha256"]
    measured = about["measured"]
    assert measured["tokens"] == measured["int8"]["tokens"] == 2000
    assert 0 < measured["max_difference"] <= 1e-4
    assert 0 != measured["int8"]["loss_percent"] < 1
    assert measured["int8"]["bytes"] < measured["bytes"]


def test_a_model_says_what_it_needs_and_nothing_of_the_machine(exported: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx"):
        content = (exported / name).read_bytes()
        for trace in (b".py", b"site-packages", b"Traceback", b"stack_trace", str(Path.home()).encode() + b"/"):
            assert trace not in content, trace
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
        assert [entry.key for entry in model.metadata_props] == [METADATA]
        assert not any(part.metadata_props or part.doc_string for part in [model.graph, *model.graph.node])
        about = json.loads(model.metadata_props[0].value)
        states = [state["name"] for state in about["states"]]
        assert [item.name for item in model.graph.input] == ["token", "elapsed", *states]
        nexts = [state["next"] for state in about["states"]]
        assert [item.name for item in model.graph.output] == ["logits", *nexts, *about["time_constants"]]
        batches = {item.type.tensor_type.shape.dim[0].dim_param for item in model.graph.input}
        assert len(batches) == 1
        assert batches != {""}, "the batch is free"


def test_the_matrices_are_int8_and_the_states_float(exported: Path) -> None:
    model = onnx.load(exported / "model.int8.onnx")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [name for name, kind in types.items() if kind == onnx.TensorProto.INT8 and "zero_point" not in name]
    # embedding, two projections and the way out of the one block, output layer
    assert len(weights) == 5
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert max(len(tensor.dims) for tensor in floats) <= 1 or all(np.prod(t.dims) < 200 for t in floats)
    assert all(item.type.tensor_type.elem_type != onnx.TensorProto.INT8 for item in model.graph.input)


# --- that it is the network


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", 0],
        ["--temperature", 0.9, "--seed", 3],
        ["--temperature", 1.2, "--top-k", 5, "--top-p", 0.8, "--seed", 4, "--ignore-eos"],
    ],
    ids=["likeliest", "drawn", "filtered"],
)
def test_the_program_alone_writes_the_text_of_ltc_generate(
    options: list[object], exported: Path, run: Path, ltc: Callable[..., Outcome]
) -> None:
    ours = alone(exported, "On day 7", "--max-tokens", 120, *options)
    assert ours.returncode == 0, ours.stderr
    assert "tokens/s" in ours.stderr
    theirs = ltc("generate", run, "--memory", 0, "--prompt", "On day 7", "--max-tokens", 120, *options)
    assert ours.stdout == theirs.out


def test_the_program_starts_a_document_and_reads_int8(exported: Path) -> None:
    result = alone(exported, "--int8", "--max-tokens", 5, "--seed", 1, "--ignore-eos")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.rstrip("\n")) >= 1


def test_a_reader_may_have_enough(exported: Path) -> None:
    command = [sys.executable, str(exported / "generate.py"), "On", "--max-tokens", "100000", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"On"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run the program's `main` in this process."""
    code = generate.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


WRONG: list[tuple[str, object]] = [
    ("--max-tokens", 0), ("--max-tokens", "\x1b[31m"), ("--temperature", "nan"), ("--temperature", "inf"),
    ("--temperature", -1), ("--top-p", 0), ("--top-p", "nan"), ("--top-k", -1), ("--seed", 2**63),
    ("--seed", "9" * 5000), ("--threads", 10**30), ("--threads", 0), ("--unknown", 1),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), WRONG, ids=lambda value: str(value)[:12])
def test_a_wrong_option_is_one_line(
    option: str, value: object, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "On", "--directory", exported, f"{option}={value}")
    assert result.code == 2
    assert option in result.err
    assert len(result.err.splitlines()) == 1
    assert "\x1b" not in result.err
    assert result.out == ""


def copy_of(exported: Path, to: Path) -> Path:
    shutil.copytree(exported, to)
    return to


@pytest.mark.slow
@pytest.mark.parametrize("name", ["export.json", "model.onnx", "tokenizer.json", "decoding.json", "detokenize.py"])
def test_a_changed_or_missing_file_is_named(name: str, exported: Path, tmp_path: Path) -> None:
    directory = copy_of(exported, tmp_path / "out")
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[:-9] + b" " + content[-8:])
    for _ in range(2):
        result = alone(directory, "On", "-n", 1)
        assert result.returncode == 4
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert name in result.stderr
        (directory / name).unlink(missing_ok=True)


def step_of(model: onnx.ModelProto) -> None:
    network = Network(model.SerializeToString())
    network.step(np.array([0]), network.initial_state())


def test_a_graph_that_is_not_that_of_its_description_is_rejected(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    about = json.loads(model.metadata_props[0].value)
    for key, value in (("vocab_size", about["vocab_size"] + 1), ("states", []), ("time_constants", ["tau_7"])):
        model.metadata_props[0].value = json.dumps(about | {key: value})
        with pytest.raises(ExportError):
            step_of(model)
    model.metadata_props[0].value = "[" * 100_000
    with pytest.raises(ExportError):
        Network(model.SerializeToString())
    with pytest.raises(ExportError):
        Network(b"no model")


@pytest.mark.parametrize("module", ["numpy", "onnxruntime"])
def test_a_missing_module_is_named_with_what_installs_it(module: str, exported: Path) -> None:
    code = ALONE.format(directory=str(exported)).replace('"torch"', repr(module))
    command = [sys.executable, "-c", code, str(exported / "generate.py"), "On"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert module in result.stderr
    assert "pip install" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_ends_in_a_line(exported: Path) -> None:
    program = shlex.join([sys.executable, str(exported / "generate.py"), "On ж", "-n", "5"])
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    expected = {"> /dev/full": 1, ">&-": 0, "2>&-": 0, "2> /dev/full": 0, "": 0}
    for redirection, code in expected.items():
        result = subprocess.run(
            f"{program} {redirection}", shell=True, capture_output=True, timeout=120, check=False, env=environment
        )
        assert result.returncode == code, redirection
        assert b"Traceback" not in result.stderr
    assert b"\\u0436" in result.stdout


def test_an_export_through_a_link_replaces_what_the_link_names(
    built: onnx.ModelProto, run: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    assert ltc("export", run, "--out", other).code == 0
    (other / "README.md").write_text("mine")
    link.symlink_to(other)
    assert ltc("export", run, "--out", link).code == 2
    assert (other / "README.md").read_text() == "mine"
    assert ltc("export", run, "--out", link, "--overwrite").code == 0
    assert (other / "README.md").read_text() != "mine"
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other"]
    for path in other.iterdir():
        path.unlink()
    (other / "precious.txt").write_text("mine")
    assert ltc("export", run, "--out", link, "--overwrite").code == 2
    other.rename(tmp_path / "elsewhere")
    assert ltc("export", run, "--out", link, "--overwrite").code == 2
    assert (tmp_path / "elsewhere" / "precious.txt").read_text() == "mine"


def test_texts_side_by_side_are_the_same_as_alone(exported: Path) -> None:
    network = Network(exported / "model.onnx")
    vocabulary = network.about["vocab_size"]
    ids = np.random.default_rng(1).integers(vocabulary, size=(20, 3))
    elapsed = np.random.default_rng(2).uniform(0, 2, size=(20, 3)).astype(np.float32)
    together, alone_states = network.initial_state(3), [network.initial_state() for _ in range(3)]
    for tokens, times in zip(ids, elapsed, strict=True):
        logits, together, taus = network.observe(tokens, together, times)
        for row in range(3):
            one, alone_states[row] = network.step(tokens[row : row + 1], alone_states[row], times[row : row + 1])
            np.testing.assert_allclose(logits[row], one[0], rtol=0, atol=1e-5)
    assert taus[0].shape == (3, *network.about["states"][0]["shape"])
    assert len({float(x) for x in taus[0][:, 0]}) == 3, "time constants are of their text"


# --- what is found out and rejected


def test_an_export_that_is_not_the_network_leaves_nothing(
    built: onnx.ModelProto, run: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    bias = next(t for t in built.graph.initializer if t.name.endswith("gate.bias"))
    values = onnx.numpy_helper.to_array(bias) + 0.01
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    result = ltc("export", run, "--out", tmp_path / "deep" / "out")
    assert result.code == 1
    assert "PyTorch" in result.error
    assert list(tmp_path.iterdir()) == []


def test_wrong_time_constants_are_found_out(built: onnx.ModelProto, run: Path, tmp_path: Path) -> None:
    last = next(node for node in built.graph.node if "tau_0" in node.output)
    last.output[0] = "right"
    built.graph.node.append(onnx.helper.make_node("Exp", ["right"], ["tau_0"]))
    with pytest.raises(LTCError, match="layer 0"):
        onnx_export.export_onnx(load_run(run), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_found_out(exported: Path, run: Path) -> None:
    network = Network(exported / "model.onnx")
    state = network.initial_state(2)
    state["neurons_0"][:] = np.nan
    network.initial_state = lambda batch=1: state
    with pytest.raises(LTCError, match=" 1 tokens"):
        check.compare(load_run(run).model, network, tokens=10)


def test_int8_that_costs_too_much_is_rejected_unless_allowed(
    built: onnx.ModelProto, run: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    perplexities = iter([10.0, 10.5, 10.0, 10.5])
    monkeypatch.setattr(check, "perplexity", lambda *_: next(perplexities))
    result = ltc("export", run, "--int8", "--out", tmp_path / "out")
    assert result.code == 1
    assert "5.00 %" in result.error
    assert list(tmp_path.iterdir()) == []
    result = ltc("export", run, "--int8", "--int8-limit", 6, "--out", tmp_path / "out", "--json")
    assert result.code == 0
    assert json.loads(result.out)["int8"]["loss_percent"] == pytest.approx(5)


def test_int8_is_measured_on_the_text_that_was_named(
    built: onnx.ModelProto, run: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(STORY[:30])
    result = ltc("export", run, "--int8", "--int8-limit", 100, "--data", other, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    measured = json.loads(result.out)["int8"]
    assert (measured["text_tokens"], measured["tokens"]) == (31, 50)
    shown = ltc("export", run, "--int8", "--int8-limit", 100, "--data", other, "--out", tmp_path / "out", "--overwrite")
    assert shown.code == 0
    assert "50 tokens" in shown.out
    other.write_text("   \n")
    assert ltc("export", run, "--int8", "--data", other, "--out", tmp_path / "blank").code == 3
    assert ltc("export", run, "--data", other, "--out", tmp_path / "blank").code == 2
    assert not (tmp_path / "blank").exists()


def test_an_export_is_replaced_only_with_overwrite(
    built: onnx.ModelProto, run: Path, tmp_path: Path, ltc: Callable[..., Outcome]
) -> None:
    out = tmp_path / "out"
    assert ltc("export", run, "--out", out).code == 0
    (out / "README.md").write_text("mine")
    result = ltc("export", run, "--out", out)
    assert result.code == 2
    assert "--overwrite" in result.error
    assert (out / "README.md").read_text() == "mine"
    assert ltc("export", run, "--out", out, "--overwrite").code == 0
    assert (out / "README.md").read_text() != "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_missing_is_named(
    run: Path, tmp_path: Path, ltc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ltc("export", tmp_path / "none").code == 4
    assert ltc("export", run, "--format", "gguf").code == 2
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = ltc("export", run, "--out", tmp_path / "out")
    assert result.code == 2
    assert "onnxscript" in result.error
    assert "[export]" in result.error


def test_networks_that_cannot_be_one_graph_say_why() -> None:
    reads = LiquidTimeConstantNetwork(20, 8, 30)
    with pytest.raises(UsageError, match=r"20.*30"):
        onnx_graph.require_exportable(TokenStep(reads))
    deep = LiquidTimeConstantNetwork(20, 8, 20, 130, 0.01, "runge_kutta", num_layers=2)
    with pytest.raises(UsageError, match="1040"):
        onnx_graph.require_exportable(TokenStep(deep))
    closed = LiquidTimeConstantNetwork(20, 8, 20, 1000, 0.001, coupling="cfc", num_layers=2)
    onnx_graph.require_exportable(TokenStep(closed))  # has no sub-steps


def test_operators_beyond_onnx_are_rejected(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    model.graph.node[0].domain = "com.example"
    with pytest.raises(UsageError, match=r"com\.example"):
        onnx_graph.clean(model)
