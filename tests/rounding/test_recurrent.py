"""Second moments of recurrent layers, against a walk over their steps that is written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.rounding.test_second_moments import moments_of
from tests.support.moments import values_of

LAYERS = {
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
    "lstm, batch first": lambda: nn.LSTM(3, 4, 2, batch_first=True),
    "gru": lambda: nn.GRU(3, 4, bidirectional=True, bias=False),
    "rnn": lambda: nn.RNN(3, 4, 2, nonlinearity="relu"),
    "projected": lambda: nn.LSTM(3, 4, 2, proj_size=2),
}


def step(layer, suffix, x, state):
    """One step of a layer by its cell, which is other code of torch."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if layer.bias else ("weight_ih", "weight_hh")
    weights = [getattr(layer, f"{name}_{suffix}") for name in names]
    weights += [None] * (4 - len(weights))
    if isinstance(layer, nn.LSTM):
        ingoing, recurrent, *biases = weights
        gates = x @ ingoing.T + state[0] @ recurrent.T + biases[0] + biases[1]
        enter, forget, candidate, leave = gates.chunk(4, -1)
        cell = forget.sigmoid() * state[1] + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        if layer.proj_size:
            hidden = hidden @ getattr(layer, f"weight_hr_{suffix}").T
        return hidden, (hidden, cell)
    function = torch.gru_cell if isinstance(layer, nn.GRU) else torch.rnn_relu_cell
    hidden = function(x, state[0], *weights)
    return hidden, (hidden, None)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_every_step(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    moments = moments_of(layer, [x], forward=lambda model, batch: model(batch)[0])
    source = x.transpose(0, 1) if layer.batch_first else x
    with torch.no_grad():
        for number in range(layer.num_layers):
            outputs = []
            for direction in range(2 if layer.bidirectional else 1):
                suffix = f"l{number}{'_reverse' if direction else ''}"
                hidden = torch.zeros(source.shape[1], layer.proj_size or 4, dtype=torch.float64)
                state = (hidden, torch.zeros(source.shape[1], 4, dtype=torch.float64))
                before, after = [], []
                for at in source.flip(0) if direction else source:
                    before.append(state[0])
                    hidden, state = step(layer, suffix, at, state)
                    after.append(hidden)
                for weight, read in (("weight_ih", source), ("weight_hh", torch.stack(before))):
                    ((_, matrix),) = values_of(moments, f"{weight}_{suffix}")
                    rows = read.reshape(-1, read.shape[-1])
                    torch.testing.assert_close(matrix[0].triu(), (rows.T @ rows).triu())
                outputs.append(torch.stack(after[::-1] if direction else after))
            source = torch.cat(outputs, -1)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_moments_of_a_cell_are_those_of_its_input_and_state(cell):
    torch.manual_seed(0)
    layer, x = cell(3, 4), torch.randn(6, 3, dtype=torch.float64)
    hidden = torch.randn(6, 4, dtype=torch.float64)

    def forward(model, batch):
        return model(batch, (hidden, hidden) if cell is nn.LSTMCell else hidden)

    moments = moments_of(layer, [x], forward=forward)
    for name, read in (("weight_ih", x), ("weight_hh", hidden)):
        ((_, matrix),) = values_of(moments, name)
        torch.testing.assert_close(matrix[0].triu(), (read.T @ read).triu())
