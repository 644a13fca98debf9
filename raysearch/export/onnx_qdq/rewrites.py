"""Rewrites of an exported QDQ graph, after which onnxruntime finds its integer kernels.

Each rewrite gives the same numbers up to float rounding, and none changes a code of a weight; but channels
that are next to nothing beside their bias get coarser codes (`bound_bias`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysearch.export.onnx_qdq.batch_norm import fold_batch_norm
from raysearch.export.onnx_qdq.bias import bound_bias
from raysearch.export.onnx_qdq.groups import transpose_grouped
from raysearch.export.onnx_qdq.values import (
    add_initializer,
    constant,
    is_grouped,
    only_reader,
    replace_node,
    weight_reader,
)

if TYPE_CHECKING:
    import onnx_ir as ir

MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operations that take integer codes as well as floats, and commute with an increasing function."""

RECTIFIERS = ("Relu", "Clip")


def fuse_regions(model: ir.Model, *, codes_move: bool = True) -> None:
    """Bring every quantized region into the form that integer kernels are fused from.

    In order: transposed weights become transposed codes, BatchNorm goes into the scales and the bias of the
    layer before it, biases are brought to what 32 bits hold, quantizers move up over poolings and reshapes,
    rectifiers that a quantizer does anyway disappear, and the bias of a matrix product gets the rank that its
    integer kernel takes.

    Args:
        model: an `onnx_ir` model, straight from the exporter; changed in place.
        codes_move: whether poolings and reshapes may run on codes.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Transpose":
            _transpose_codes(graph, node)
    for node in list(graph):
        if node.op_type == "BatchNormalization":
            fold_batch_norm(graph, node)
    for node in list(graph):
        if node.op_type == "Conv":
            bound_bias(graph, node)
    for node in list(graph):
        if node.op_type == "Gemm":
            _open_gemm(graph, node)
    if codes_move:
        # Last first: a quantizer may go up over several operations.
        for node in reversed(list(graph)):
            if node.op_type == "QuantizeLinear":
                _move_up(graph, node)
    for node in list(graph):
        if node.op_type in RECTIFIERS:
            _drop_rectifier(graph, node)
    for node in list(graph):
        if node.op_type == "MatMul":
            _lift_bias(graph, node)
    for node in list(graph):
        if node.op_type in ("Conv", "ConvTranspose", "MatMul"):
            _shield_float_weight(graph, node)


def _axis(node: Any, default: int = 1) -> int:
    entry = node.attributes.get("axis")
    return default if entry is None else int(entry.value)


def _transpose_codes(graph: ir.Graph, node: Any) -> None:
    import onnx_ir as ir

    reader = node.inputs[0].producer()
    if reader is None or reader.op_type != "DequantizeLinear" or constant(reader.inputs[0]) is None:
        return
    if is_grouped(reader):
        transpose_grouped(graph, node, reader)
        return
    order = [int(dim) for dim in node.attributes["perm"].value]
    moved = ir.node("Transpose", [reader.inputs[0]], attributes={"perm": order})
    moved.outputs[0].type = reader.inputs[0].type
    scale = constant(reader.inputs[1])
    per_channel = {} if scale is None or not scale.ndim else {"axis": order.index(_axis(reader))}
    fresh = ir.node("DequantizeLinear", [moved.outputs[0], *reader.inputs[1:]], attributes=per_channel)
    fresh.outputs[0].type, fresh.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, [moved, fresh])
    replace_node(graph, node, fresh.outputs[0])


def _open_gemm(graph: ir.Graph, node: Any) -> None:
    """x·Wᵀ + b of integer weights as Transpose of the codes, MatMul and Add."""
    import onnx_ir as ir

    reader = weight_reader(node)
    plain = all(float(node.attributes[name].value) == 1.0 for name in ("alpha", "beta"))
    if reader is None or not plain or node.attributes["transA"].value or not node.attributes["transB"].value:
        return
    turned = ir.node("Transpose", [reader.outputs[0]], attributes={"perm": [1, 0]})
    product = ir.node("MatMul", [node.inputs[0], turned.outputs[0]], name=node.name)
    product.metadata_props.update(node.metadata_props)
    nodes, last = [turned, product], product
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        last = ir.node("Add", [product.outputs[0], node.inputs[2]])
        nodes.append(last)
    for made in (product, last):
        made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    columns, rows = reader.outputs[0].shape
    turned.outputs[0].type, turned.outputs[0].shape = reader.outputs[0].type, ir.Shape([rows, columns])
    graph.insert_before(node, nodes)
    replace_node(graph, node, last.outputs[0])
    _transpose_codes(graph, turned)


def _move_up(graph: ir.Graph, quantize: Any) -> None:
    """Quantize(pool(x)) → pool(Quantize(x)), so that the layer before the pooling gives codes."""
    while True:
        move = quantize.inputs[0].producer()
        if move is None or move.op_type not in MOVES or only_reader(quantize.inputs[0]) is not quantize:
            return
        if len([value for value in move.outputs if value.uses()]) != 1 or move.outputs[0].is_graph_output():
            return
        last = quantize
        clip = only_reader(quantize.outputs[0])
        if clip is not None and clip.op_type == "Min":
            last = clip
        source, after = move.inputs[0], last.outputs[0]
        graph.remove([quantize, last] if last is not quantize else [quantize])
        graph.insert_before(move, [quantize, last] if last is not quantize else [quantize])
        quantize.replace_input_with(0, source)
        after.replace_all_uses_with(move.outputs[0])
        move.replace_input_with(0, after)
        move.outputs[0].type = after.type
        for value in {quantize.outputs[0], after}:
            value.shape = source.shape


def _drop_rectifier(graph: ir.Graph, node: Any) -> None:
    """Let a quantizer do what ReLU, or ReLU6 as Clip, does before it.

    Rounding is increasing, so clipping to 0 … u before it is clipping to codes z … rne(u/s) + z after it.
    The container's own ends need no node: a zero point of 0 is ReLU, a top code below rne(u/s) + z is u.
    """
    if node.outputs[0].is_graph_output() or not node.outputs[0].uses():
        return
    high = np.inf
    if node.op_type == "Clip":
        bounds = [constant(value) for value in (*node.inputs[1:], None, None)[:2]]
        if bounds[0] is None or bounds[1] is None or float(bounds[0]) != 0.0:
            return
        high = float(bounds[1])
    readers = {use.node for use in node.outputs[0].uses()}
    if any(
        reader.op_type != "QuantizeLinear" or _grid(reader) is None or reader.outputs[0].is_graph_output()
        for reader in readers
    ):
        return
    for reader in readers:
        scale, zero = _grid(reader) or (1.0, 0)
        if np.isfinite(high):
            top = int(np.rint(np.float32(high) / np.float32(scale))) + zero
            if top < _top_code(reader):
                _clip_codes(graph, reader, "Min", top)
        if zero:
            _clip_codes(graph, reader, "Max", zero)
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    graph.remove(node, safe=True)


def _grid(quantize: Any) -> tuple[float, int] | None:
    """Scale and zero point of a quantizer per tensor to uint8; None of any other."""
    scale, zero = constant(quantize.inputs[1]), constant(quantize.inputs[2])
    if scale is None or zero is None or zero.dtype != np.uint8 or zero.size != 1:
        return None
    return float(scale.reshape(())), int(zero.reshape(()))


def _clip_codes(graph: ir.Graph, quantize: Any, kind: str, bound: int) -> None:
    import onnx_ir as ir

    codes = quantize.outputs[0]
    limit = add_initializer(graph, f"{kind.lower()}{bound}", np.array(bound, np.uint8))
    clip = ir.node(kind, [codes, limit])
    clip.outputs[0].type, clip.outputs[0].shape = codes.type, codes.shape
    codes.replace_all_uses_with(clip.outputs[0])
    clip.replace_input_with(0, codes)
    graph.insert_after(quantize, clip)


def _top_code(quantize: Any) -> int:
    clip = only_reader(quantize.outputs[0])
    bound = constant(clip.inputs[1]) if clip is not None and clip.op_type == "Min" else None
    return 255 if bound is None else int(bound)


def _lift_bias(graph: ir.Graph, product: Any) -> None:
    """Keep onnxruntime from merging MatMul and its bias into a float Gemm.

    A bias of shape [1, N] is enough where rows have more than one dimension before them. Of a plain matrix
    −b is subtracted, which is the same number.
    """
    import onnx_ir as ir

    add = only_reader(product.outputs[0])
    if add is None or add.op_type != "Add" or weight_reader(product) is None:
        return
    index = 1 if add.inputs[0] is product.outputs[0] else 0
    bias = constant(add.inputs[index])
    if bias is None or bias.ndim != 1:
        return
    name = f"{add.inputs[index].name}.row"
    if len(product.outputs[0].shape or ()) != 2:
        add.replace_input_with(index, add_initializer(graph, name, bias[None]))
        return
    fresh = ir.node("Sub", [product.outputs[0], add_initializer(graph, name, -bias[None])])
    fresh.outputs[0].type, fresh.outputs[0].shape = add.outputs[0].type, add.outputs[0].shape
    graph.insert_before(add, fresh)
    replace_node(graph, add, fresh.outputs[0])


def _is_batched(node: Any) -> bool:
    """Whether a matrix product reads integer weights of more dimensions than a matrix."""
    return (
        node.op_type == "MatMul" and weight_reader(node) is not None and len(node.inputs[1].shape or ()) > 2
    )


def _shield_float_weight(graph: ir.Graph, node: Any) -> None:
    """Keep a float weight between quantizers float: onnxruntime would round it to 8 bits, per tensor.

    So are batched integer weights, of which its integer product takes no scale a channel.

    It does so where the layer reads DequantizeLinear directly; a Clip without effect stands in between.
    """
    import onnx_ir as ir

    maker = node.inputs[0].producer()
    is_float = constant(node.inputs[1]) is not None
    if maker is None or maker.op_type != "DequantizeLinear" or not (is_float or _is_batched(node)):
        return
    lowest = add_initializer(graph, "lowest", np.array(np.finfo(np.float32).min, np.float32))
    shield = ir.node("Clip", [node.inputs[0], lowest])
    shield.outputs[0].type, shield.outputs[0].shape = node.inputs[0].type, node.inputs[0].shape
    graph.insert_before(node, shield)
    node.replace_input_with(0, shield.outputs[0])
