"""What the weights of a recurrent layer are multiplied with: inputs, and the hidden states before each step.

torch runs all steps, layers and directions as one function. Its outputs are the hidden states, so running it
a layer and a direction at a time gives what every matrix reads, and no step is computed by other code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raysearch.rounding.layers import Geometry, LayerCall

_LAYERS: Mapping[Callable[..., Any], bool] = {
    torch.lstm: True,
    torch.gru: False,
    torch.rnn_tanh: False,
    torch.rnn_relu: False,
}
"""Function → whether it has a cell state beside the hidden one."""

_CELLS: Mapping[Callable[..., Any], bool] = {
    torch.lstm_cell: True,
    torch.gru_cell: False,
    torch.rnn_tanh_cell: False,
    torch.rnn_relu_cell: False,
}


def recurrent_calls(function: Callable[..., Any], args: Sequence[Any]) -> Iterator[LayerCall]:
    """The matrix products within a call of a recurrent function; none within any other.

    The projection of an LSTM reads what the function does not give, so it has none; nor has a packed
    sequence.

    Args:
        function: as torch's override protocol passes it.
        args: positional arguments of the call.
    """
    if function in _CELLS:
        source, states = args[:2]
        hidden = states[0] if _CELLS[function] else states
        yield LayerCall(Geometry("linear"), source, args[2])
        yield LayerCall(Geometry("linear"), hidden, args[3])
    elif function in _LAYERS and len(args) == 9 and isinstance(args[3], bool):
        yield from _of_layers(function, args)


def _of_layers(function: Callable[..., Any], args: Sequence[Any]) -> Iterator[LayerCall]:
    source, states, weights, has_biases, num_layers, _, _, has_directions, batch_first = args
    num_directions = 2 if has_directions else 1
    per_direction = len(weights) // (num_layers * num_directions)
    time = 1 if batch_first and source.ndim == 3 else 0
    for layer in range(num_layers):
        outputs = []
        for direction in range(num_directions):
            index = layer * num_directions + direction
            own = weights[index * per_direction : (index + 1) * per_direction]
            start = _part(states, index) if isinstance(states, Tensor) else [_part(s, index) for s in states]
            ordered = source.flip(time) if direction else source
            arguments = (ordered, start, own, has_biases, 1, 0.0, False, False, batch_first)
            steps = function(*arguments)[0]
            hidden = (start if isinstance(start, Tensor) else start[0]).movedim(0, time)
            before = torch.cat([hidden, steps.narrow(time, 0, steps.shape[time] - 1)], time)
            yield LayerCall(Geometry("linear"), source, own[0])
            yield LayerCall(Geometry("linear"), before, own[1])
            outputs.append(steps.flip(time) if direction else steps)
        source = torch.cat(outputs, -1) if has_directions else outputs[0]


def _part(states: Tensor, index: int) -> Tensor:
    return states[index : index + 1]
