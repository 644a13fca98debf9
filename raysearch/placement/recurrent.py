"""Weights of recurrent layers: LSTM, GRU, RNN and their cells, which torch runs as one function each."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from raysearch.placement.capture import CapturedGraph, Operation
from raysearch.placement.weight_reads import WeightRead, weight_of

_LAYERS = {"aten.lstm": 2, "aten.gru": 1, "aten.rnn_tanh": 1, "aten.rnn_relu": 1}
"""Functions over a sequence → how many states stand between the input and the weights."""

_CELLS = {"aten.lstm_cell": 2, "aten.gru_cell": 1, "aten.rnn_tanh_cell": 1, "aten.rnn_relu_cell": 1}

_HAS_BIASES, _NUM_LAYERS, _HAS_DIRECTIONS = 3, 4, 7
"""Where these stand among the arguments of a function over a sequence."""


def read_recurrent(graph: CapturedGraph, op: Operation, modules: Collection[str]) -> tuple[WeightRead, ...]:
    """The matrices that a recurrent layer reads; none where an operation is no such layer.

    Those of the first layer that read the input have it as theirs; what the others read are states inside the
    function, which stay float. MACs: numel(W) · steps.

    Args:
        graph: the captured graph.
        op: the operation.
        modules: paths of recurrent modules. A weight that is handed to the function by other code is left
            float, since nobody knows where that keeps it.
    """
    num_states = _LAYERS.get(op.op, _CELLS.get(op.op, 0))
    # A packed sequence brings its lengths as a tensor, in front of the states: all others stand behind it.
    is_packed = op.op in _LAYERS and not isinstance(op.literals[_HAS_BIASES], bool)
    if not num_states or is_packed or op.module not in modules:
        return ()
    source, parameters = op.operands[0], op.operands[1 + num_states :]
    rows = prod(graph.operations[source].shape[:-1])
    reads = []
    for position, name in enumerate(parameters):
        weight = weight_of(graph, name, 0)
        shape = graph.operations[name].shape
        if weight is None or len(shape) < 2:
            continue
        inputs = ((0, source),) if position in _first_positions(op, len(parameters)) else ()
        reads.append(WeightRead(*weight, "recurrent", "recurrent", inputs, prod(shape) * rows))
    return tuple(reads)


def _first_positions(op: Operation, num_parameters: int) -> tuple[int, ...]:
    """Where the weights stand that read the layer's input: one a direction."""
    if op.op in _CELLS:
        return (0,)
    num_directions = 1 + int(op.literals[_HAS_DIRECTIONS])
    num_layers = int(op.literals[_NUM_LAYERS])
    per_direction = num_parameters // (num_layers * num_directions)
    return tuple(direction * per_direction for direction in range(num_directions))
