"""The ONNX target: a QDQ model whose weights are stored as integer codes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from torch import nn

from raysearch.controller import StrippedWeight
from raysearch.export.onnx_qdq.capture import capture
from raysearch.export.onnx_qdq.packages import PRECISION, require_onnx
from raysearch.export.onnx_qdq.proto import finish, write_model
from raysearch.export.onnx_qdq.storage import SPREAD_BITS, choose_containers, code_width

FILE = "model.onnx"


def write_onnx(
    stripped: nn.Module, weights: dict[str, StrippedWeight], example_inputs: tuple[Any, ...], path: Path
) -> int | None:
    """Write a stripped module as an ONNX file for onnxruntime, of opset 21, or 25 where it holds INT2.

    Weights become initializers of codes with DequantizeLinear: INT2, INT4, INT8, or a bit stream at 3, 5, 6
    and 7 bits, decoded by functions that onnxruntime folds at load. Activations become QuantizeLinear and
    DequantizeLinear in a uint8 container at every width. BatchNorm goes into scales and biases. The batch
    dimension is open where the model allows it. Quantizers keep their ids as names of QuantizeLinear nodes.

    Args:
        stripped: the stripped module, integer form.
        weights: its integer weights.
        example_inputs: positional arguments of its forward; dimension 0 is the batch.
        path: the file.

    Returns:
        The only batch size the file takes, or None when any will do.

    Raises:
        ExportError: the extra is missing, the exporter refuses the model, or a weight did not arrive.
    """
    require_onnx()
    model, fixed_batch = capture(stripped, weights, example_inputs)
    write_model(finish(model, weights), path)
    return fixed_batch


def container_notes(weights: dict[str, StrippedWeight], *, for_onnxruntime: bool = True) -> tuple[str, ...]:
    """Statements for the manifest: which widths are stored in a wider container, and what runs slower."""
    label = "onnx" if for_onnxruntime else "openvino"
    sizes = {name: (w.codes.numel(), code_width(w.codes.cpu().numpy())) for name, w in weights.items()}
    containers = choose_containers(sizes, streams=for_onnxruntime)
    wider: Counter[tuple[int, str]] = Counter()
    for name, weight in weights.items():
        if containers[name].num_bits > weight.num_bits:
            wider[weight.num_bits, containers[name].kind] += 1
    notes = [f"{label}: activations are stored as uint8 at every width; below 8 bits codes are clipped."]
    for (bits, kind), count in sorted(wider.items()):
        notes.append(f"{label}: {bits}-bit weights ({count} of {len(weights)} tensors) are stored as {kind}.")
    shifted = sum(weight.zero_point is not None for weight in weights.values())
    if shifted:
        notes.append(f"{label}: {shifted} weights have zero points; integer kernels are slower for them.")
    if for_onnxruntime and any(bits > SPREAD_BITS for _, bits in sizes.values()):
        notes.append(
            f"onnx: 8-bit weights saturate on x86 CPUs without VNNI unless the session option "
            f"'{PRECISION[0]}' is '{PRECISION[1]}'; it was set for the verification."
        )
    return tuple(notes)
