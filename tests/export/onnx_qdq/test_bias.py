"""Channels that are next to nothing beside their bias, as pruned and trained nets have them."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.onnx_kernels import check_numbers, export, kernels


class Layers(nn.Module):
    """Every kind of layer, with and without BatchNorm; half of it on codes of a float input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16, eps=1e-12)
        self.plain = nn.Conv2d(16, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.up(F.relu(self.depth(F.relu(self.plain(x))))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


def weakened(factors=(0.0, 1e-30, 1e-12, 1e-5)):
    """Weights of channel i are as small as factor i; with BatchNorm, statistics make up for it."""
    torch.manual_seed(0)
    model = Layers().eval()
    with torch.no_grad():
        model.norm.running_var.uniform_(0.5, 1.5)
        nn.init.normal_(model.norm.weight)
        nn.init.normal_(model.norm.bias)
        for layer in (model.stem, model.plain, model.depth, model.up, model.hidden, model.head):
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            for index, factor in enumerate(factors):
                layer.weight.select(axis, index).mul_(factor)
                if layer.bias is not None:
                    layer.bias[index] = 0.7 - 0.2 * index
        model.norm.weight[len(factors)] = 0.0
    return model


def images():
    """The same in any order of tests: a dead channel whose value lies between two codes flips as a whole."""
    return (torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.slow
def test_dead_channels_keep_their_bias_in_integer_kernels(tmp_path):
    path, inputs = tmp_path / "model.onnx", images()
    stripped = export(weakened(), inputs, path)
    found, _ = kernels(path)
    assert (found["QLinearConv"], found["MatMulIntegerToFloat"], found["ConvTranspose"]) == (3, 2, 1)
    assert not {"Conv", "FusedConv", "Gemm", "BatchNormalization"} & set(found)
    check_numbers(stripped, inputs, path)


@pytest.mark.slow
def test_a_weight_of_zeros_keeps_its_name_and_biases(tmp_path):
    path, inputs = tmp_path / "model.onnx", images()
    model = weakened()
    nn.init.zeros_(model.plain.weight)
    stripped = export(model, inputs, path)
    assert any(tensor.name.startswith("plain.weight") for tensor in onnx.load(path).graph.initializer)
    check_numbers(stripped, inputs, path)
