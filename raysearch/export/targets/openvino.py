"""The OpenVINO target: a QDQ file in the containers that OpenVINO computes with integers from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from raysearch.errors import StorageError
from raysearch.export.extras import Extra
from raysearch.export.onnx_qdq.file_module import Arrays, OnnxFileModule
from raysearch.export.onnx_qdq.packages import ONNX
from raysearch.export.targets.capability import EVERY_WIDTH, Capability
from raysearch.export.targets.qdq_target import QdqTarget

OPENVINO = Extra("openvino", (*ONNX.packages, "openvino"))


class OpenVinoTarget(QdqTarget):
    """An ONNX file for OpenVINO: codes of up to 4 bits are INT4 with a Cast to INT8, wider ones INT8."""

    name = "openvino"
    files = ("model.openvino.onnx",)
    # It reads no INT2 and decodes bit streams at every inference.
    capability = Capability({width: 4 if width <= 4 else 8 for width in EVERY_WIDTH}, holds_projections=False)
    extra = OPENVINO
    for_onnxruntime = False

    def load(self, folder: Path) -> OpenVinoModel:
        """The file in OpenVINO on the CPU."""
        return OpenVinoModel(folder / self.files[0])


class OpenVinoModel(OnnxFileModule):
    """Runs the file in OpenVINO on the CPU, with float32 as the precision of what is no integer kernel.

    OpenVINO's own default is bfloat16 where the CPU has it, which differs by 1e-2 from every other runtime.

    Raises:
        ExportError: the extra is missing.
        StorageError: OpenVINO cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        OPENVINO.require("openvino")
        import onnx
        import openvino as ov

        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            core = ov.Core()
            compiled = core.compile_model(core.read_model(os.fspath(path)), "CPU", options)
        except Exception as error:
            raise StorageError(
                f"OpenVINO {ov.__version__} cannot load {os.fspath(path)}: {error}. Export it again."
            ) from error
        # OpenVINO keeps neither the file's metadata nor the order of its inputs and outputs.
        proto = onnx.load(os.fspath(path))
        super().__init__(
            f"openvino {ov.__version__.split('-')[0]} CPU",
            [value.name for value in proto.graph.input],
            {entry.key: entry.value for entry in proto.metadata_props},
            [v.name for v in proto.graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT],
        )
        self.compiled = compiled
        self.output_order = [value.name for value in proto.graph.output]

    def run_arrays(self, feed: Arrays) -> list[npt.NDArray[np.generic]]:
        """Run the compiled file."""
        results = self.compiled(feed)
        # The next run writes its outputs to the same memory.
        return [results[name].copy() for name in self.output_order]
