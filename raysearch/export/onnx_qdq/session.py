"""An ONNX file as onnxruntime runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from raysearch.errors import StorageError
from raysearch.export.onnx_qdq.file_module import Arrays, OnnxFileModule
from raysearch.export.onnx_qdq.packages import require_onnx

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TRACED = "optimized.onnx"

MATMUL_ACCURACY = "session.qdq_matmulnbits_accuracy_level"
"""A session option: how exact the kernel is that multiplies by weights with a scale per group, MatMulNBits.
By default it takes its input in blocks of 8 bits; at 1 it takes floats."""

PRECISION = ("session.x64quantprecision", "1")
"""A session option and its value. With it CPUs that sum pairs of u8·s8 products in 16 bits (those without
VNNI) use a kernel that does not saturate; without it 8-bit weights give wrong numbers. Others ignore it."""


def load_session(
    model: str | bytes, optimized: bool = True, threads: int | None = None, trace: Path | None = None
) -> InferenceSession:
    """A quiet session on the CPU, with the option `PRECISION` where onnxruntime takes it.

    Args:
        model: path of a file, or its bytes.
        optimized: whether onnxruntime may rewrite the graph and fuse integer kernels.
        threads: within an operation; None is torch's number.
        trace: a folder, where the session times its nodes and writes the graph it runs, as optimized.onnx.
    """
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    for precise in (True, False):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace / "nodes")
            options.optimized_model_filepath = str(trace / TRACED)
        if precise:
            options.add_session_config_entry(*PRECISION)
        try:
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception:
            # onnxruntime 1.32 cannot prepare one weight for two such kernels.
            if not (precise and optimized):
                raise
    raise AssertionError("unreachable")


class OnnxModel(OnnxFileModule):
    """Runs an exported ONNX file in onnxruntime on the CPU; takes tensors by position or by keyword.

    Args:
        path: the file.
        optimized: whether onnxruntime may fuse into integer kernels, as it does by default. Without, it
            computes Q/DQ in float, which shows what the file says.

    Raises:
        ExportError: the extra `onnx` is missing.
        StorageError: onnxruntime cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str], optimized: bool = True) -> None:
        require_onnx()
        import onnxruntime as ort

        try:
            session = load_session(os.fspath(path), optimized)
        except Exception as error:
            raise StorageError(
                f"onnxruntime {ort.__version__} cannot load {os.fspath(path)}: {error}. Export it again, or "
                f"update onnxruntime."
            ) from error
        off = "" if optimized else ", graph optimizations off"
        super().__init__(
            f"onnxruntime {ort.__version__} CPU{off}",
            [entry.name for entry in session.get_inputs()],
            session.get_modelmeta().custom_metadata_map,
            [entry.name for entry in session.get_inputs() if entry.type == "tensor(float)"],
        )
        self.session = session

    def run_arrays(self, feed: Arrays) -> list[npt.NDArray[np.generic]]:
        """Run the session."""
        outputs: list[npt.NDArray[np.generic]] = self.session.run(None, feed)
        return outputs
