"""Codes of one layer at a time: where integer kernels round differently from what the file says.

A network amplifies a flip of one step, so outputs say little about a layer. Here every layer is given the
very codes that the integer kernels gave it, and computes its next codes as the file says, in float.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raysearch.export.onnx_qdq.file_module import Arrays
from raysearch.export.onnx_qdq.session import load_session
from raysearch.export.verification.flip_counts import FlipCounts
from raysearch.records import LayerFlips

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def count_flips(path: Path, feeds: list[Arrays]) -> tuple[LayerFlips, ...]:
    """Compare codes of onnxruntime's integer kernels with those of the file's float definition, per tensor.

    Work: two forwards a batch; all codes of a batch are held at once, one byte each.

    Args:
        path: a file of the target `onnx`.
        feeds: arrays by input name, one dict a batch.

    Returns:
        One entry for each quantized activation, in graph order.
    """
    import onnx

    model = onnx.load(path)
    names = _code_values(model.graph)
    if not names:
        # Weights alone are quantized; a session that is asked for no output would give all of them.
        return ()
    fused = load_session(_with_outputs(model, names).SerializeToString())
    single = load_session(cut_at(model, names).SerializeToString(), optimized=False)
    required = {entry.name for entry in single.get_inputs()}
    values = list(names)
    counts = FlipCounts(names.values())
    for feed in feeds:
        codes = dict(zip(values, fused.run(values, feed), strict=True))
        available = {**feed, **{cut_input(value): array for value, array in codes.items()}}
        inputs = {name: array for name, array in available.items() if name in required}
        for value, expected in zip(values, single.run(values, inputs), strict=True):
            counts.add(names[value], codes[value], expected)
    return counts.layers()


def _code_values(graph: GraphProto) -> dict[str, str]:
    """Value of finished codes → name of its QuantizeLinear; a Min and Max after it are part of it."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    quantizers: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            value = node.output[0]
            while len(readers.get(value, ())) == 1 and readers[value][0].op_type in ("Min", "Max"):
                value = readers[value][0].output[0]
            quantizers[value] = node.name or value
    return quantizers


def _with_outputs(model: ModelProto, names: dict[str, str]) -> ModelProto:
    import onnx

    copy: ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, None) for n in names
    )
    return copy


def cut_input(value: str) -> str:
    """The input that takes the place of a value in a model of `cut_at`."""
    return f"{value}.given"


def cut_at(model: ModelProto, names: dict[str, str]) -> ModelProto:
    """The model with every reader of the named codes reading a new input `<value>.given` instead.

    The codes become outputs.
    """
    import onnx

    copy = _with_outputs(model, names)
    read: set[str] = set()
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = cut_input(name)
                read.add(name)
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(cut_input(name), onnx.TensorProto.UINT8, None)
        for name in names
        if name in read
    )
    return copy
