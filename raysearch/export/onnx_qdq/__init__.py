"""An ONNX graph with QuantizeLinear and DequantizeLinear, captured, rewritten and run."""
