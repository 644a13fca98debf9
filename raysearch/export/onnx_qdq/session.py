"""An ONNX file as a module, run by onnxruntime."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import StorageError
from raysearch.export.onnx_qdq.capture import OUTPUT_KEY
from raysearch.export.onnx_qdq.packages import PRECISION, require_onnx
from raysearch.export.outputs import NamedOutputs, tensor_leaves

TRACED = "optimized.onnx"


def load_session(
    model: str | bytes, optimized: bool = True, threads: int | None = None, trace: Path | None = None
) -> Any:
    """A quiet CPU session of a file or its bytes, with torch's number of threads, or `threads`.

    With `trace`, a folder, it times its nodes, and writes the graph it runs there as optimized.onnx.

    With "session.x64quantprecision" CPUs that sum pairs of u8·s8 products in 16 bits (those without VNNI) use
    a kernel that does not saturate; without it 8-bit weights give wrong numbers there. Other CPUs ignore it.
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


class OnnxModel(nn.Module):
    """Runs an exported ONNX file on the CPU; takes tensors by position or by keyword.

    Args:
        path: the file.
        optimized: whether onnxruntime may fuse into integer kernels, as it does by default. Without, it
            computes Q/DQ in float, which shows what the file says.

    Attributes:
        runtime: name and version of what runs it.
        recorded: where set to a list, the arrays of every call are kept there.

    Raises:
        ExportError: the extra `onnx` is missing.
        StorageError: onnxruntime cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str], optimized: bool = True) -> None:
        super().__init__()
        require_onnx()
        import onnxruntime as ort

        try:
            self.session: Any = load_session(os.fspath(path), optimized)
        except Exception as error:
            raise StorageError(
                f"onnxruntime {ort.__version__} cannot load {os.fspath(path)}: {error}. Export it again, or "
                f"update onnxruntime."
            ) from error
        off = "" if optimized else ", graph optimizations off"
        self.runtime = f"onnxruntime {ort.__version__} CPU{off}"
        self.input_names: list[str] = [entry.name for entry in self.session.get_inputs()]
        kept = self.session.get_modelmeta().custom_metadata_map.get(OUTPUT_KEY)
        self.output_names: list[str] | None = json.loads(kept) if kept else None
        self.recorded: list[dict[str, Any]] | None = None
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the session.

        Returns:
            A tensor, a tuple of tensors, or the named outputs of the original.

        Raises:
            TypeError: an input is missing or unknown.
        """
        given = [leaf for value in args for leaf in tensor_leaves(value)]
        by_name = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        names = self.input_names[: len(given)]
        feeds = {**dict(zip(names, given, strict=False)), **by_name}
        if len(given) > len(names) or set(feeds) != set(self.input_names) or set(names) & set(by_name):
            raise TypeError(
                f"the ONNX file takes the tensors ({', '.join(self.input_names)}); {len(given)} were given "
                f"by position and {sorted(by_name)} by keyword."
            )
        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in feeds.items()}
        if self.recorded is not None:
            self.recorded.append(arrays)
        outputs = [torch.from_numpy(value) for value in self.session.run(None, arrays)]
        if self.output_names is not None:
            return NamedOutputs(zip(self.output_names, outputs, strict=True))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
