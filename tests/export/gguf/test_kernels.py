"""Inputs of linear layers as llama.cpp's kernels round them."""

import pytest
import torch
from torch import nn

from raysearch.export.gguf.kernels import RoundedInputs


@pytest.mark.parametrize(("length", "size"), [(512, 256), (64, 32)])
def test_a_linear_layer_reads_its_inputs_in_8_bits_a_block(length: int, size: int) -> None:
    layer = nn.Linear(length, length, bias=False)
    nn.init.eye_(layer.weight)
    values = torch.randn(3, length)
    values[0, :size] = 0
    with torch.no_grad(), RoundedInputs():
        rounded = layer(values)
    steps = values.reshape(-1, size).abs().amax(1, keepdim=True) / 127
    errors = (rounded - values).reshape(-1, size).abs()
    assert (errors <= steps * 0.5001).all()
    assert (errors > steps * 0.3).any(1)[1:].all()
    assert (rounded[0, :size] == 0).all()
    assert torch.equal(layer(values), values)


def test_so_does_a_captured_program() -> None:
    layer, values = nn.Linear(32, 4), torch.randn(2, 32)
    program = torch.export.export(layer, (values,)).module()
    with torch.no_grad(), RoundedInputs():
        rounded = program(values)
        assert torch.equal(rounded, layer(values))
    assert not torch.equal(rounded, layer(values))


def test_rows_that_hold_no_block_stay_as_they_are() -> None:
    layer, values = nn.Linear(12, 4), torch.randn(2, 12)
    with RoundedInputs():
        rounded = layer(values)
    assert torch.equal(rounded, layer(values))
