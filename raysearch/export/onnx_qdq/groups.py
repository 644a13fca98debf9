"""Weights with a scale per group of inputs, in the form of blocked quantization that runtimes execute.

From the capture on, and while a graph is rewritten, such a weight is one DequantizeLinear with `block_size`
whose scales have the rank of the codes: [O, groups, 1, 1] of a convolution's [O, I, kh, kw]. ONNX defines
blocks along one axis only, so at the end the kernel positions are laid along it: codes [O, I·kh·kw] in blocks
of size·kh·kw, and a Reshape after them.

Behind a quantizer onnxruntime 1.32 makes an integer kernel of such a layer, which then cannot run; a Reshape
after the DequantizeLinear keeps it from that. Of a matrix product with a float input, whose
weight it reads directly, it makes MatMulNBits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raysearch.export.onnx_qdq.values import (
    BLOCK,
    add_initializer,
    constant,
    is_grouped,
    replace_node,
)

if TYPE_CHECKING:
    import onnx_ir as ir


def group_attributes(reader: Any) -> dict[str, int]:
    """`axis` and `block_size` of a DequantizeLinear with groups."""
    return {name: int(reader.attributes[name].value) for name in ("axis", BLOCK)}


def spread_over_codes(reader: Any, values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Scales or zero points of a DequantizeLinear as they broadcast to its codes.

    Args:
        reader: the DequantizeLinear.
        values: one a scale.
        shape: of the codes.
    """
    if is_grouped(reader):
        places = group_attributes(reader)
        axis = places["axis"]
        repeated = np.repeat(values, places[BLOCK], axis)
        return np.take(repeated, range(shape[axis]), axis)
    along = [1] * len(shape)
    if values.size > 1:
        along[int(reader.attributes["axis"].value)] = -1
    return values.reshape(along)


def transpose_grouped(graph: ir.Graph, node: Any, reader: Any) -> None:
    """Store a weight with groups as a Transpose gives it, and take the Transpose out.

    Nothing is done where several layers read the codes: in two orders they would be stored twice.

    Args:
        graph: the nodes'.
        node: the Transpose.
        reader: the DequantizeLinear before it.
    """
    import onnx_ir as ir

    if len(reader.inputs[0].uses()) > 1 or len(reader.outputs[0].uses()) > 1:
        return
    order = [int(dim) for dim in node.attributes["perm"].value]
    places = group_attributes(reader)
    fresh = ir.node(
        "DequantizeLinear",
        _changed(graph, reader, lambda array: np.transpose(array, order)),
        attributes={"axis": order.index(places["axis"]), BLOCK: places[BLOCK]},
    )
    fresh.outputs[0].type, fresh.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, fresh)
    replace_node(graph, node, fresh.outputs[0])
    _remove(graph, reader, fresh)


def _changed(
    graph: ir.Graph, reader: Any, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> list[Any]:
    """New initializers of a weight's codes, scales and zero points, each changed in the same way."""
    values = []
    for value in reader.inputs:
        array = constant(value)
        assert array is not None
        values.append(add_initializer(graph, value.name, np.ascontiguousarray(change(array))))
    return values


def _remove(graph: ir.Graph, reader: Any, fresh: Any) -> None:
    """Remove a DequantizeLinear that nothing reads; the codes of the one in its place take their name."""
    codes = reader.inputs[0]
    graph.remove(reader, safe=True)
    if not codes.uses():
        name = codes.name
        del graph.initializers[name]
        # The file names codes after their weights.
        fresh.inputs[0].name = name


def _reads_quantized(value: Any) -> bool:
    """Whether a weight is read, perhaps transposed, by a layer whose other input is quantized."""
    for node in (use.node for use in value.uses()):
        if node.op_type == "Transpose" and _reads_quantized(node.outputs[0]):
            return True
        makers = [other.producer() for other in node.inputs if other is not None and other is not value]
        if any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
            return True
    return False


def own_codes(model: ir.Model) -> None:
    """Give weights with groups codes of their own: one without, whose are equal, stores them otherwise."""
    for value in list(model.graph.initializers.values()):
        readers: list[Any] = [use.node for use in value.uses()]
        grouped = [node for node in readers if node.op_type == "DequantizeLinear" and is_grouped(node)]
        if grouped and len(grouped) < len(readers):
            array = constant(value)
            assert array is not None
            copy = add_initializer(model.graph, str(value.name), array)
            for node in grouped:
                node.replace_input_with(0, copy)


def flatten_groups(model: ir.Model) -> None:
    """Bring every weight with groups to a form that ONNX has and onnxruntime runs; see above."""
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and is_grouped(node):
            codes = constant(node.inputs[0])
            if codes is not None and codes.ndim > 2:
                _flatten(model.graph, node, codes)
            elif codes is not None and _reads_quantized(node.outputs[0]):
                _shield(model.graph, node)


def _shield(graph: ir.Graph, reader: Any) -> None:
    """Store a matrix with a dimension of 1 before it, and let a Reshape take that off."""
    import onnx_ir as ir

    places = group_attributes(reader)
    fresh = ir.node(
        "DequantizeLinear",
        _changed(graph, reader, lambda array: array[None]),
        attributes={"axis": places["axis"] + 1, BLOCK: places[BLOCK]},
    )
    _put_reshaped(graph, reader, fresh, tuple(reader.outputs[0].shape))


def _flatten(graph: ir.Graph, reader: Any, codes: npt.NDArray[np.int8]) -> None:
    import onnx_ir as ir

    places = group_attributes(reader)
    # Channels first, then the inputs, then the kernel positions: those of a group lie side by side. Of
    # transposed convolutions the inputs come first.
    inputs_first = places["axis"] == 0
    order = list(range(codes.ndim))
    if inputs_first:
        order[:2] = [1, 0]
    turned = np.transpose(codes, order)
    fresh = ir.node(
        "DequantizeLinear",
        _changed(graph, reader, lambda array: np.transpose(array, order).reshape(len(turned), -1)),
        attributes={"axis": 1, BLOCK: places[BLOCK] * math.prod(codes.shape[2:])},
    )
    _put_reshaped(graph, reader, fresh, turned.shape, order if inputs_first else None)


def _put_reshaped(
    graph: ir.Graph, reader: Any, fresh: Any, shape: tuple[int, ...], order: list[int] | None = None
) -> None:
    """Put a DequantizeLinear, a Reshape and perhaps a Transpose in the place of a DequantizeLinear.

    Args:
        graph: the reader's.
        reader: removed.
        fresh: what takes its place, not yet in the graph.
        shape: what it is reshaped to.
        order: what that is permuted by.
    """
    import onnx_ir as ir

    target = add_initializer(graph, f"{reader.inputs[0].name}.shape", np.array(shape, np.int64))
    nodes = [fresh, ir.node("Reshape", [fresh.outputs[0], target])]
    fresh.outputs[0].shape, nodes[1].outputs[0].shape = fresh.inputs[0].shape, ir.Shape(shape)
    if order is not None:
        nodes.append(ir.node("Transpose", [nodes[1].outputs[0]], attributes={"perm": order}))
        nodes[2].outputs[0].shape = reader.outputs[0].shape
    for node in nodes:
        node.outputs[0].type = reader.outputs[0].type
    graph.insert_before(reader, nodes)
    reader.outputs[0].replace_all_uses_with(nodes[-1].outputs[0])
    _remove(graph, reader, fresh)


def drop_zero_points(model: ir.Model) -> None:
    """Leave out zero points that are all 0 of narrow weights with groups: an eighth of the scales.

    Those of 8 bits stay: for CPUs without VNNI onnxruntime turns such weights to unsigned ones, and where it
    has to make up their zero points, it makes a single one.
    """
    node: Any
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and is_grouped(node):
            zero = constant(node.inputs[2])
            is_narrow = node.inputs[0].dtype.name != "INT8"
            if is_narrow and zero is not None and not zero.astype(np.int8).any():
                node.resize_inputs(2)
