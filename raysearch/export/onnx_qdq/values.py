"""Values and nodes of an `onnx_ir` graph: reading, adding and replacing them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir as ir


SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the paths of the modules that it was traced in, outermost first."""

BLOCK = "block_size"
"""The attribute of DequantizeLinear that says how many inputs share a scale."""


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any], dtype: Any = None) -> Any:
    """A new initializer.

    Args:
        graph: where it is put.
        name: its name; one that is taken gets a number.
        array: its values.
        dtype: of `onnx_ir`, for types that numpy does not tell apart; None is the array's.
    """
    import onnx_ir as ir

    free, count = name, 1
    while free in graph.initializers:
        free, count = f"{name}.{count}", count + 1
    tensor = ir.Tensor(array, dtype=dtype, name=free)
    value = ir.Value(
        name=free, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def constant(value: Any) -> npt.NDArray[Any] | None:
    """The array of an initializer, or None of any other value."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    array: npt.NDArray[Any] = value.const_value.numpy()
    return array


def is_grouped(reader: Any) -> bool:
    """Whether a DequantizeLinear has a scale per group."""
    return BLOCK in reader.attributes


def weight_reader(node: Any) -> Any:
    """The DequantizeLinear of integer codes that feeds a layer's weight, or None."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "DequantizeLinear" or maker.inputs[0].dtype is None:
        return None
    return maker if maker.inputs[0].dtype.name == "INT8" else None


def only_reader(value: Any) -> Any:
    """The node that reads a value, if it is one node and the value is no output of the graph."""
    readers = {use.node for use in value.uses()}
    return readers.pop() if len(readers) == 1 and not value.is_graph_output() else None


def copy_of(node: Any, inputs: list[Any]) -> Any:
    """A node of the same operation, attributes and name over other inputs."""
    import onnx_ir as ir

    fresh = ir.node(node.op_type, inputs, attributes=dict(node.attributes), name=node.name)
    fresh.metadata_props.update(node.metadata_props)
    fresh.outputs[0].type, fresh.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    return fresh


def replace_node(graph: ir.Graph, node: Any, value: Any) -> None:
    """Let a value take the place of a node's only output, its name as an output of the graph too.

    Args:
        graph: the node's.
        node: removed.
        value: what its readers read from now on.
    """
    old = node.outputs[0]
    if old.is_graph_output():
        value.name, old.name = old.name, f"{old.name}.replaced"
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = value
    old.replace_all_uses_with(value)
    graph.remove(node, safe=True)


def read_codes(graph: ir.Graph, layer: Any, reader: Any, codes: Any, scale: npt.NDArray[np.float32]) -> None:
    """Let a layer read codes, with other scales, instead of what a DequantizeLinear gives it.

    Without groups the scales lie along axis 0.

    The DequantizeLinear is a new one, and nothing is changed in place: the exporter merges equal scales, and
    layers may share a weight.

    Args:
        graph: the layer's.
        layer: a node whose second input is its weight.
        reader: the DequantizeLinear that gives it now; its zero points stay. Removed if nothing reads it.
        codes: the value of the new codes.
        scale: the new scales, one a channel, or of groups as the old ones.
    """
    import onnx_ir as ir

    zero = constant(reader.inputs[2])
    zeros = np.ascontiguousarray(np.broadcast_to(0 if zero is None else zero, scale.shape)).astype(np.int8)
    name = reader.inputs[0].name
    attributes: dict[str, Any] = {"axis": 0}
    if is_grouped(reader):
        attributes = dict(reader.attributes)
    fresh = ir.node(
        "DequantizeLinear",
        [
            codes,
            add_initializer(graph, f"{name}.scale", scale),
            add_initializer(graph, f"{name}.zero", zeros),
        ],
        attributes=attributes,
    )
    fresh.outputs[0].type, fresh.outputs[0].shape = reader.outputs[0].type, reader.outputs[0].shape
    graph.insert_before(layer, fresh)
    layer.replace_input_with(1, fresh.outputs[0])
    if not reader.outputs[0].uses():
        graph.remove(reader, safe=True)
