"""BatchNorm folded into the codes' scales and the bias of the layer before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raysearch.export.onnx_values import (
    add_initializer,
    constant,
    copy_of,
    only_reader,
    replace_node,
    weight_reader,
)

BIAS_LIMIT = 2.0**26
"""Greatest bias on the grid of an integer kernel; codes that are spread over 7 bits make it 2^5 finer."""


def fold_batch_norm(graph: Any, norm: Any) -> None:
    """Scale of channel c times f_c = γ/√(σ²+ε), and bias (b − μ)·f + β: the codes stay as they are.

    A negative f gives a negative scale, which the definition of DequantizeLinear allows. Where f is 0 the
    whole channel is the constant β; its scale stays, over codes of 0.
    """
    layer = norm.inputs[0].producer()
    reader = weight_reader(layer) if layer is not None and layer.op_type == "Conv" else None
    gamma, beta, mean, variance = (constant(value) for value in norm.inputs[1:5])
    if reader is None or only_reader(norm.inputs[0]) is not norm:
        return
    if gamma is None or beta is None or mean is None or variance is None:
        return
    scale, bias = constant(reader.inputs[1]), constant(layer.inputs[2]) if len(layer.inputs) > 2 else 0.0
    if scale is None or bias is None:
        return
    epsilon = float(norm.attributes["epsilon"].value)
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    folded = np.broadcast_to(scale, factor.shape) * factor
    if not np.all(np.abs(folded) > np.finfo(np.float32).tiny):
        return
    shift = (np.asarray(bias, np.float64) - mean) * factor + beta
    codes = _without_dead_channels(graph, layer, reader, folded, shift)
    _rescale(graph, layer, reader, codes, np.where(_is_dead(layer, folded, shift), 1.0, folded))
    added = add_initializer(graph, f"{norm.inputs[1].name}.folded", shift.astype(np.float32))
    inputs = [layer.inputs[0], layer.inputs[1], added]
    fresh = copy_of(layer, inputs)
    graph.insert_before(norm, fresh)
    replace_node(graph, norm, fresh.outputs[0])
    graph.remove(layer, safe=True)


def _is_dead(layer: Any, scale: npt.NDArray[Any], bias: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Channels whose bias exceeds what 32 bits hold on the grid of input scale times weight scale.

    Integer kernels round a bias to that grid, and wrap around where it does not fit. Such a weight moves the
    result by less than a thousandth of the bias for each of its inputs' codes.
    """
    maker = layer.inputs[0].producer()
    given = constant(maker.inputs[1]) if maker is not None and maker.op_type == "DequantizeLinear" else None
    if given is None:
        return np.zeros(scale.shape, bool)
    dead: npt.NDArray[Any] = np.abs(bias) > np.abs(scale) * float(given.max()) * BIAS_LIMIT
    return dead


def _without_dead_channels(
    graph: Any, layer: Any, reader: Any, scale: npt.NDArray[Any], bias: npt.NDArray[Any]
) -> Any:
    """The codes with 0 in dead channels."""
    dead, value = _is_dead(layer, scale, bias), reader.inputs[0]
    codes = constant(value)
    if codes is None or not dead.any():
        return value
    return add_initializer(
        graph, f"{value.name}", np.where(dead.reshape(-1, *[1] * (codes.ndim - 1)), 0, codes).astype(np.int8)
    )


def _rescale(graph: Any, layer: Any, reader: Any, codes: Any, scale: npt.NDArray[Any]) -> None:
    import onnx_ir as ir

    scale = scale.astype(np.float32)

    # Of its own, never changed in place: the exporter merges equal scales, and layers may share a weight.
    zero = constant(reader.inputs[2])
    zeros = np.ascontiguousarray(np.broadcast_to(0 if zero is None else zero, scale.shape)).astype(np.int8)
    fresh = ir.node(
        "DequantizeLinear",
        [
            codes,
            add_initializer(graph, f"{reader.inputs[0].name}.scale", scale),
            add_initializer(graph, f"{reader.inputs[0].name}.zero", zeros),
        ],
        attributes={"axis": 0},
    )
    fresh.outputs[0].type, fresh.outputs[0].shape = reader.outputs[0].type, reader.outputs[0].shape
    graph.insert_before(layer, fresh)
    layer.replace_input_with(1, fresh.outputs[0])
