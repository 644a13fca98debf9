"""Codes of one layer at a time: where integer kernels round differently from what the file says.

A network amplifies a flip of one step, so outputs say little about a layer. Here every layer is given the
very codes that the integer kernels gave it, and computes its next codes as the file says, in float.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysearch.export.onnx_qdq.session import load_session
from raysearch.records import LayerFlips

Arrays = dict[str, npt.NDArray[Any]]


def count_flips(path: Path, feeds: list[Arrays]) -> tuple[LayerFlips, ...]:
    """Compare codes of onnxruntime's integer kernels with those of the file's float definition, per tensor.

    Work: two forwards a batch; all codes of a batch are held at once, one byte each.

    Args:
        path: a file of `write_onnx`.
        feeds: arrays by input name, one dict a batch.

    Returns:
        One entry for each quantized activation, in graph order.
    """
    import onnx

    model = onnx.load(path)
    names = _code_values(model.graph)
    fused = load_session(_with_outputs(model, names).SerializeToString())
    single = load_session(cut_at(model, names).SerializeToString(), optimized=False)
    totals = {name: [0, 0, 0] for name in names}
    for feed in feeds:
        codes = dict(zip(names, fused.run(list(names), feed), strict=True))
        held = {f"{name}.given": value for name, value in codes.items()}
        wanted = {entry.name for entry in single.get_inputs()}
        given = {name: value for name, value in {**feed, **held}.items() if name in wanted}
        for name, expected in zip(names, single.run(list(names), given), strict=True):
            steps = np.abs(codes[name].astype(np.int16) - expected)
            total = totals[name]
            total[0] += int(np.count_nonzero(steps))
            total[1] += steps.size
            total[2] = max(total[2], int(steps.max(initial=0)))
    return tuple(LayerFlips(names[name], *total) for name, total in totals.items())


def _code_values(graph: Any) -> dict[str, str]:
    """Value of finished codes → name of its QuantizeLinear; a Min and Max after it are part of it."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            value = node.output[0]
            while len(readers.get(value, ())) == 1 and readers[value][0].op_type in ("Min", "Max"):
                value = readers[value][0].output[0]
            found[value] = node.name or value
    return found


def _with_outputs(model: Any, names: dict[str, str]) -> Any:
    import onnx

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, None) for n in names
    )
    return copy


def cut_at(model: Any, names: dict[str, str]) -> Any:
    """The model with every reader of the named codes reading a new input `<value>.given` instead.

    The codes become outputs.
    """
    import onnx

    copy = _with_outputs(model, names)
    read: set[str] = set()
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = f"{name}.given"
                read.add(name)
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(f"{name}.given", onnx.TensorProto.UINT8, None)
        for name in names
        if name in read
    )
    return copy
