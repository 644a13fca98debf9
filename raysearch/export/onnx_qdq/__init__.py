"""An ONNX graph with QuantizeLinear and DequantizeLinear, captured, rewritten, written and run."""

from raysearch.export.onnx_qdq.capture import capture
from raysearch.export.onnx_qdq.file_module import OnnxFileModule
from raysearch.export.onnx_qdq.packages import ONNX
from raysearch.export.onnx_qdq.proto import finish, write_model
from raysearch.export.onnx_qdq.session import OnnxModel, load_session

__all__ = ["ONNX", "OnnxFileModule", "OnnxModel", "capture", "finish", "load_session", "write_model"]
