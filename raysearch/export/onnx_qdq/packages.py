"""The packages that write and run ONNX files."""

from __future__ import annotations

from raysearch.export.extras import Extra

ONNX = Extra("onnx", ("onnx", "onnxscript", "onnx_ir", "ml_dtypes", "onnxruntime"))


def require_onnx() -> None:
    """Refuse to go on without them.

    Raises:
        ExportError: names the packages and the command that installs them.
    """
    ONNX.require("onnx")
