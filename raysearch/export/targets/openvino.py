"""The OpenVINO target: a QDQ file in the containers that OpenVINO computes with integers from."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.controller import StrippedWeight
from raysearch.errors import ExportError, StorageError
from raysearch.export.onnx_qdq.capture import OUTPUT_KEY
from raysearch.export.onnx_qdq.packages import missing_packages
from raysearch.export.onnx_qdq.proto import finish, write_model
from raysearch.export.outputs import NamedOutputs, tensor_leaves

FILE = "model.openvino.onnx"


def missing_openvino() -> list[str]:
    """Packages of the extra `openvino` that are not installed."""
    return [*missing_packages(), *(["openvino"] if importlib.util.find_spec("openvino") is None else [])]


def require_openvino() -> None:
    """Refuse to go on without the extra.

    Raises:
        ExportError: names the packages and the command that installs them.
    """
    if missing := missing_openvino():
        raise ExportError(
            f"the target 'openvino' needs {', '.join(missing)}; install them with "
            f'`pip install "raysearch[openvino]"`.'
        )


def write_openvino(model: Any, weights: dict[str, StrippedWeight], path: Path) -> None:
    """Write a captured model as an ONNX file for OpenVINO.

    Codes of up to 4 bits are INT4 with a Cast to INT8, wider ones INT8: OpenVINO reads no INT2 and decodes
    bit streams at every inference.

    Args:
        model: of `onnx_target.capture`; changed in place.
        weights: its integer weights.
        path: the file.

    Raises:
        ExportError: see `write_onnx`.
    """
    require_openvino()
    write_model(finish(model, weights, for_onnxruntime=False), path)


class OpenVinoModel(nn.Module):
    """Runs the file in OpenVINO on the CPU, with float32 as the precision of what is no integer kernel.

    OpenVINO's own default is bfloat16 where the CPU has it, which differs by 1e-2 from every other runtime.

    Raises:
        ExportError: the extra is missing.
        StorageError: OpenVINO cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        require_openvino()
        import onnx
        import openvino as ov

        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            core = ov.Core()
            self.compiled: Any = core.compile_model(core.read_model(os.fspath(path)), "CPU", options)
        except Exception as error:
            raise StorageError(
                f"OpenVINO {ov.__version__} cannot load {os.fspath(path)}: {error}. Export it again."
            ) from error
        proto = onnx.load(os.fspath(path))
        self.runtime = f"openvino {ov.__version__.split('-')[0]} CPU"
        self.input_names = [value.name for value in proto.graph.input]
        self.output_positions = [value.name for value in proto.graph.output]
        kept = {entry.key: entry.value for entry in proto.metadata_props}.get(OUTPUT_KEY)
        self.output_names: list[str] | None = json.loads(kept) if kept else None
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; outputs as `OnnxModel` gives them.

        Raises:
            TypeError: an input is missing or unknown.
        """
        given = [leaf for value in args for leaf in tensor_leaves(value)]
        by_name = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        feeds = {**dict(zip(self.input_names, given, strict=False)), **by_name}
        if len(given) > len(self.input_names) or set(feeds) != set(self.input_names):
            raise TypeError(f"the model takes the tensors ({', '.join(self.input_names)}).")
        results = self.compiled({name: value.detach().cpu().numpy() for name, value in feeds.items()})
        outputs = [torch.from_numpy(results[name].copy()) for name in self.output_positions]
        if self.output_names is not None:
            return NamedOutputs(zip(self.output_names, outputs, strict=True))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
