"""Mixed-precision quantization search for PyTorch on Ray."""

__version__ = "0.1.0"
