"""An int8 variant of an exported network: the matrices in 8 bits, everything that a state passes through in float32."""

from pathlib import Path
from typing import TYPE_CHECKING

from ltc_textgen.export.onnx_graph import clean

if TYPE_CHECKING:
    import onnx


def quantize(model: "onnx.ModelProto", path: Path) -> None:
    """Write `model` with its matrix products and its embedding in int8.

    Weights are rounded per output channel, activations as they come ("dynamic"). The solver, the states, the
    convolutions and the time constants are elementwise and stay in float32. Weights use 7 of the 8 bits: on x86
    processors without VNNI the 16-bit sums of onnxruntime's product overflow with all 8, and they gain nothing.

    Args:
        model: As `onnx_graph.build` makes it.
        path: The .onnx file to write.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    # What the tool looks for before it warns that the graph has not been simplified; the exporter has done that.
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
