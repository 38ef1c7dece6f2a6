"""Dynamic int8 quantisation of an exported graph: matrices in 8 bits, states and solver in float32."""

from pathlib import Path
from typing import TYPE_CHECKING

from ltc_textgen.export.onnx_graph import clean

if TYPE_CHECKING:
    import onnx


def quantize(model: "onnx.ModelProto", path: Path) -> None:
    """Write `model` with its matrix products and its embedding in int8.

    Weights are quantised per output channel, activations dynamically per tensor. Solver, states, convolutions and time
    constants are elementwise and stay in float32. Weights use 7 of the 8 bits: on x86 processors without VNNI the
    16-bit sums of onnxruntime's product saturate with 8, and the eighth bit gains nothing.

    Args:
        model: The result of `onnx_graph.build`.
        path: The .onnx file to write.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    # Marks the graph as simplified, which the exporter has done: without the mark the tool warns.
    prepared.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantize_dynamic(
        prepared,
        path,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )
    small = onnx.load(path)
    clean(small)
    small.metadata_props.extend(model.metadata_props)
    path.write_bytes(small.SerializeToString())
