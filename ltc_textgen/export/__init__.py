"""A trained network as files that run without PyTorch and without this package."""

from ltc_textgen.export.onnx_export import Exported, export_onnx
from ltc_textgen.export.step import TokenStep

__all__ = ["Exported", "TokenStep", "export_onnx"]
