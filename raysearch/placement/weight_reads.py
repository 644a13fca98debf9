"""How an operation of the captured graph reads a weight: the parameter, its channel axis, input and MACs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from raysearch.hooks.einsum import Einsum, read_einsum
from raysearch.placement.capture import CapturedGraph, Operation

CONVOLUTIONS = {"aten.conv1d": 1, "aten.conv2d": 2, "aten.conv3d": 3}
TRANSPOSED = {"aten.conv_transpose1d": 1, "aten.conv_transpose2d": 2, "aten.conv_transpose3d": 3}
LINEAR = "aten.linear"
EMBEDDING = "aten.embedding"
BILINEAR = "aten.bilinear"
EINSUM = "aten.einsum"
PRODUCTS = {"aten.matmul": 0, "aten.mm": 0, "aten.bmm": 0, "aten.baddbmm": 1, "aten.addmm": 1}
"""Matrix products → where the first factor stands among the arguments."""

GETITEM = "<built-in function getitem>"
SLICES = frozenset(
    {"aten.split", "aten.split_with_sizes", "aten.chunk", "aten.slice", "aten.narrow", "aten.detach", GETITEM}
)
"""Operations that take a part of a weight: attention over other keys splits its `in_proj_weight`."""

_REVERSED = ("aten.t", "aten.numpy_T", "aten.matrix_H", "aten.mT", "aten.adjoint")
TURNS = frozenset({*_REVERSED, "aten.transpose", "aten.permute", "aten.select"})
"""Operations through which a weight is read with its axes in another order, or one matrix of several."""


@dataclass(frozen=True)
class WeightRead:
    """One operation that reads a weight.

    Attributes:
        parameter: qualified name of the weight.
        axis: its channel axis.
        kind: of the operation: "conv", "depthwise", "conv_transpose", "linear", "recurrent" or "embedding".
        call: kind of the call that a tap counts, see `Call`; "" of an embedding, "recurrent" of a layer whose
            input its module's hook reaches.
        inputs: (operand of that call, name of the tensor), of each tensor that the weight is multiplied with.
        macs: multiply-accumulates of the whole batch.
    """

    parameter: str
    axis: int
    kind: str
    call: str
    inputs: tuple[tuple[int, str], ...]
    macs: int


def read_weight(graph: CapturedGraph, op: Operation) -> WeightRead | None:
    """What an operation reads as a weight; None where it reads none.

    MACs: convolution numel(W) · output positions; transposed convolution numel(W) · input positions; linear
    and matrix products the product of all sizes that take part; embedding 0.
    """
    if op.op == EMBEDDING:
        weight = weight_of(graph, op.arguments[0], 0)
        return None if weight is None else WeightRead(*weight, "embedding", "", (), 0)
    if op.op in CONVOLUTIONS or op.op in TRANSPOSED:
        return _convolution(graph, op)
    if op.op == LINEAR:
        return _linear(graph, op, num_inputs=1)
    if op.op == BILINEAR:
        return _linear(graph, op, num_inputs=2)
    if op.op in PRODUCTS:
        return _product(graph, op)
    if op.op == EINSUM:
        return _einsum(graph, op)
    return None


def _linear(graph: CapturedGraph, op: Operation, num_inputs: int) -> WeightRead | None:
    """The inputs stand first among the arguments, and the weight behind them."""
    name = op.arguments[num_inputs]
    weight = weight_of(graph, name, 0)
    if weight is None:
        return None
    num_rows = prod(graph.operations[op.arguments[0]].shape[:-1])
    macs = prod(graph.operations[name].shape) * num_rows
    inputs = tuple(enumerate(op.arguments[:num_inputs]))
    return WeightRead(*weight, "linear", op.op.removeprefix("aten."), inputs, macs)


def _convolution(graph: CapturedGraph, op: Operation) -> WeightRead | None:
    is_transposed = op.op in TRANSPOSED
    weight = weight_of(graph, op.arguments[1], int(is_transposed))
    if weight is None:
        return None
    source, kernel = (graph.operations[op.arguments[position]].shape for position in (0, 1))
    if is_transposed:
        kind, shape, dims = "conv_transpose", source, TRANSPOSED[op.op]
    else:
        shape, dims = op.shape, CONVOLUTIONS[op.op]
        kind = "depthwise" if kernel[1] == 1 and source[-1 - dims] > 1 else "conv"
    positions = prod(shape) // max(1, shape[-1 - dims])
    return WeightRead(*weight, kind, "conv", ((0, op.arguments[0]),), prod(kernel) * positions)


def _product(graph: CapturedGraph, op: Operation) -> WeightRead | None:
    """x·W with W [in, out], or W·x with W [out, in]; in front of them may be dimensions that are one each."""
    first = PRODUCTS[op.op]
    factors = op.arguments[first : first + 2]
    inner = graph.operations[factors[0]].shape[-1:]
    for operand, from_end in ((1, 1), (0, 2)):
        num_dims = len(graph.operations[factors[operand]].shape)
        other = factors[1 - operand]
        if num_dims < 2 or other in graph.constants or not len(graph.operations[other].shape):
            continue
        weight = weight_of(graph, factors[operand], num_dims - from_end)
        if weight is not None:
            macs = prod(op.shape) * prod(inner)
            return WeightRead(*weight, "linear", "matmul", ((1 - operand, other),), macs)
    return None


def _einsum(graph: CapturedGraph, op: Operation) -> WeightRead | None:
    equation = read_einsum(op.literals[0], [graph.operations[name].shape for name in op.operands])
    if equation is None:
        return None
    for operand in (1, 0):
        other = op.operands[1 - operand]
        axis = _channel_axis(equation, operand, graph.operations[op.operands[operand]].shape)
        if axis is None or other in graph.constants:
            continue
        weight = weight_of(graph, op.operands[operand], axis)
        if weight is not None:
            return WeightRead(*weight, "linear", "einsum", ((1 - operand, other),), equation.macs)
    return None


def _channel_axis(equation: Einsum, operand: int, shape: Sequence[int]) -> int | None:
    """The largest axis of an operand that the result has and the other operand lacks."""
    if len(shape) < 2:
        return None
    labels, other = equation.operands[operand], equation.operands[1 - operand]
    axes = [axis for axis, label in enumerate(labels) if label in equation.result and label not in other]
    return max(axes, key=lambda axis: shape[axis], default=None)


def weight_of(graph: CapturedGraph, name: str, axis: int) -> tuple[str, int] | None:
    """The parameter that an operand is, or is a part of, and where the operand's axis is in it."""
    while name and name not in graph.parameters:
        op = graph.operations[name]
        if op.op in TURNS:
            axis = _axis_before(graph, op, axis)
        elif op.op not in SLICES:
            return None
        name = op.arguments[0] if op.arguments else ""
    return (graph.parameters[name], axis) if name else None


def _axis_before(graph: CapturedGraph, op: Operation, axis: int) -> int:
    """Where an axis of a turned tensor is in the tensor that was turned."""
    num_dims = len(graph.operations[op.arguments[0]].shape)
    if op.op in _REVERSED:
        # These turn the last two dimensions; `numpy_T` turns all, which is the same of a matrix.
        order = list(range(num_dims))
        order = order[::-1] if op.op == "aten.numpy_T" else [*order[:-2], *order[:-3:-1]]
        return order[axis]
    if op.op == "aten.permute":
        order = [int(dim) % num_dims for dim in op.literals[1]]
        return order[axis]
    if op.op == "aten.select":
        return axis + int(axis >= int(op.literals[1]) % num_dims)
    one, other = (int(dim) % num_dims for dim in op.literals[1:3])
    return {one: other, other: one}.get(axis, axis)
