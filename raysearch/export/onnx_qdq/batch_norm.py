"""BatchNorm folded into the codes' scales and the bias of the layer before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysearch.export.onnx_qdq.values import (
    add_initializer,
    constant,
    copy_of,
    is_grouped,
    only_reader,
    read_codes,
    replace_node,
    weight_reader,
)

if TYPE_CHECKING:
    import onnx_ir as ir


def fold_batch_norm(graph: ir.Graph, norm: Any) -> None:
    """Scale of channel c times f_c = γ/√(σ²+ε), and bias (b − μ)·f + β: the codes stay as they are.

    A negative f gives a negative scale, which the definition of DequantizeLinear allows. Scales and biases
    that integer kernels cannot take are left to `bound_biases`.
    """
    layer = norm.inputs[0].producer()
    reader = weight_reader(layer) if layer is not None and layer.op_type == "Conv" else None
    gamma, beta, mean, variance = (constant(value) for value in norm.inputs[1:5])
    if reader is None or only_reader(norm.inputs[0]) is not norm:
        return
    if gamma is None or beta is None or mean is None or variance is None:
        return
    scale = constant(reader.inputs[1])
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else 0.0
    if scale is None or bias is None:
        return
    epsilon = float(norm.attributes["epsilon"].value)
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    if is_grouped(reader):
        folded = scale * factor.reshape(-1, *[1] * (scale.ndim - 1))
    else:
        folded = np.broadcast_to(scale, factor.shape) * factor
    shift = (np.asarray(bias, np.float64) - mean) * factor + beta
    read_codes(graph, layer, reader, reader.inputs[0], folded.astype(np.float32))
    added = add_initializer(graph, f"{norm.inputs[1].name}.folded", shift.astype(np.float32))
    inputs = [layer.inputs[0], layer.inputs[1], added]
    fresh = copy_of(layer, inputs)
    graph.insert_before(norm, fresh)
    replace_node(graph, norm, fresh.outputs[0])
    graph.remove(layer, safe=True)
