"""The single-step graph as an ONNX model: traced without custom kernels, stripped, with a description of its state.

Names: inputs `token`, `elapsed` and one per state tensor (`neurons_0`, `columns_0`, ...), outputs `logits`, the same
states as `next_neurons_0`, ... and the time constants `tau_0`, ... The batch is the first dimension of each, and free.
"""

import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ltc_textgen.config import Solver
from ltc_textgen.errors import UsageError
from ltc_textgen.export.host.network import METADATA
from ltc_textgen.export.step import TokenStep
from ltc_textgen.io.extras import install_line
from ltc_textgen.kernels import dispatch
from ltc_textgen.layers.base import MembraneLayer

if TYPE_CHECKING:
    import onnx

MOST_EVALUATIONS = 1000
"""Most membrane evaluations per token over all layers: the solver's loop is unrolled into the graph."""

LARGEST = 2**31 - 2**24
"""Most bytes of weights: an ONNX file is a protobuf message, which is limited to 2 GiB."""


def require_packages() -> None:
    """Check that the packages of the extra "export" are installed.

    Raises:
        UsageError: Names the missing packages and the command that installs them.
    """
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"export needs {', '.join(missing)}: {install_line('export')}")


def require_exportable(step: TokenStep) -> None:
    """Check that a network can become one graph.

    Raises:
        UsageError: If its output vocabulary is not its input vocabulary, its solver takes more than `MOST_EVALUATIONS`
            evaluations, or its weights exceed `LARGEST` bytes.
    """
    settings = step.network.settings
    if settings.vocabulary != settings.input_size:
        raise UsageError(
            f"export needs one vocabulary: this network reads {settings.input_size} tokens and writes "
            f"{settings.vocabulary}, so what it writes cannot be read again"
        )
    stages = 4 if settings.solver == Solver.runge_kutta else 1
    unrolled = [layer.cell for layer in step.network.layers if isinstance(layer.cell, MembraneLayer)]
    evaluations = len(unrolled) * settings.steps * stages
    if evaluations > MOST_EVALUATIONS:
        raise UsageError(
            f"export unrolls the solver: {evaluations} evaluations a token ({len(unrolled)} layers, {settings.steps} "
            f"steps, {settings.solver}) are more than the {MOST_EVALUATIONS} of one graph; train with fewer steps"
        )
    size = sum(parameter.numel() for parameter in step.network.parameters()) * 4
    if size > LARGEST:
        raise UsageError(f"export writes one file of at most 2 GiB, the weights have {size / 2**30:.1f} GiB")


def trace(step: TokenStep) -> torch.export.ExportedProgram:
    """The step as a `torch.export` program without custom operators, for any batch size."""
    batch = torch.export.Dim("batch")
    state = [value.expand(2, *value.shape).contiguous() for value in step.initial.values()]
    arguments = (torch.zeros(2, dtype=torch.int64), torch.ones(2), *state)
    shapes = {"token": {0: batch}, "elapsed": {0: batch}, "state": tuple({0: batch} for _ in state)}
    with dispatch.use("reference"), torch.no_grad():
        return torch.export.export(step, arguments, dynamic_shapes=shapes, strict=False)


def build(step: TokenStep, description: dict[str, Any]) -> "onnx.ModelProto":
    """The ONNX model of a network.

    Args:
        step: The network.
        description: Stored in the metadata, with `states` and `time_constants` added.

    Raises:
        UsageError: See `require_exportable`.
    """
    require_exportable(step)
    names = [host_name(name) for name in step.state_names]
    constants = [f"tau_{i}" for i in range(len(step.network.layers))]
    outputs = ["logits", *(f"next_{name}" for name in names), *constants]
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    with dispatch.use("reference"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noisy.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                trace(step), dynamo=True, verbose=False, input_names=["token", "elapsed", *names], output_names=outputs
            )
        finally:
            noisy.setLevel(level)
    assert program is not None
    model = program.model_proto
    clean(model)
    fold_transposes(model)
    states = [
        {"name": name, "next": f"next_{name}", "shape": list(value.shape), "initial": _numbers(value)}
        for name, value in zip(names, step.initial.values(), strict=True)
    ]
    description = description | {"states": states, "time_constants": constants}
    model.metadata_props.add(key=METADATA, value=json.dumps(description, sort_keys=True))
    return model


def host_name(name: str) -> str:
    """A state's name as an identifier of most languages: neurons.0 is neurons_0."""
    return name.replace(".", "_")


def clean(model: "onnx.ModelProto") -> None:
    """Take out what the exporter notes about the machine: source paths, stack traces, module names of this program.

    Raises:
        UsageError: If the graph holds an operator that is not of the ONNX standard.
    """
    graph = model.graph
    del model.functions[:]
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    foreign = {node.domain for node in graph.node} - {"", "ai.onnx"}
    if foreign:
        raise UsageError(f"export: the graph holds operators that ONNX does not know, of {', '.join(sorted(foreign))}")
    # The exporter lists the domains of operators that it might have needed.
    standard = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(standard)


def fold_transposes(model: "onnx.ModelProto") -> None:
    """Store weights transposed as they are multiplied, so that each is a constant, as int8 needs."""
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    folded = [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in weights]
    for node in folded:
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        turned = numpy_helper.to_array(weights[node.input[0]]).transpose(order)
        model.graph.initializer.append(numpy_helper.from_array(turned.copy(), node.output[0]))
        model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _numbers(value: torch.Tensor) -> float | list[float]:
    """One number if all are the same, as in the zero state."""
    flat = value.flatten().tolist()
    return flat[0] if len(set(flat)) == 1 else flat
