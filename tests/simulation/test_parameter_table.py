"""Reads of a parameter are noticed and answered, and nobody else sees it."""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from raysearch.simulation.parameter_table import ParameterTable


class Spy(TorchFunctionMode):
    """Names of the functions that are called while it is on."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_read_is_told_and_answered_until_the_answer_is_taken_back():
    layer, reads = nn.Linear(2, 2), []
    own = layer.weight
    table = ParameterTable.of(layer)
    assert ParameterTable.of(layer) is table
    table.watch("weight", lambda: reads.append("weight"))
    table.answer("weight", lambda: nn.Parameter(own.detach() * 2))
    assert torch.equal(layer.weight, own * 2)
    assert [parameter is own for parameter in layer.parameters()] == [True, False]
    table.answer("weight", None)
    assert layer.weight is own
    assert reads == ["weight"] * 2


def test_what_makes_an_answer_is_no_part_of_the_forward():
    layer, spy = nn.Linear(2, 2), Spy()
    own = layer.weight
    ParameterTable.of(layer).answer("weight", lambda: nn.Parameter(own.detach() * 2))
    with torch.inference_mode(), spy:
        layer(torch.ones(1, 2))
        assert not layer.weight.is_inference()
    assert spy.names.count("linear") == 1
    assert "mul" not in spy.names
