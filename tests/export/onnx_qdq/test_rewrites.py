"""The graph that onnxruntime runs: which kernels it took, and that the numbers stayed."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.onnx_kernels import check_numbers, export, kernels

pytestmark = pytest.mark.slow


class Pooled(nn.Module):
    """A ResNet in small: stem with max pooling, residual blocks with ReLU6, average pooling, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32))
        self.left = nn.Sequential(nn.Conv2d(32, 96, 3, padding=1, bias=False), nn.BatchNorm2d(96))
        self.right = nn.Sequential(nn.Conv2d(96, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.depth = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32))
        self.last = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = F.relu(x + self.right(F.relu6(self.left(x))))
        x = F.relu(self.last(F.relu6(self.depth(x))))
        return self.head(x.mean((2, 3)))


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32, bias=index != 1) for index in range(4))

    def forward(self, ids):
        x = self.table(ids)
        for layer in self.layers[:3]:
            x = torch.tanh(layer(x))
        return self.layers[3](x.mean(1))


def pooled():
    torch.manual_seed(3)
    model = Pooled().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.weight)  # half of them negative
            nn.init.normal_(module.bias)
    return model, (torch.randn(16, 3, 16, 16),)


@pytest.mark.parametrize("activation", [8, 4])
def test_every_convolution_between_quantizers_is_an_integer_kernel(tmp_path, activation):
    model, inputs = pooled()
    path = tmp_path / "model.onnx"
    stripped = export(model, inputs, path, activation=activation)
    found, decoded = kernels(path)
    assert found["QLinearConv"] == 5
    assert found["MatMulIntegerToFloat"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "BatchNormalization", "Relu", "Clip"} & set(found)
    assert not {"Decode3", "Widen", "Gather"} & set(found)
    assert not decoded
    names = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert {"left.0.weight.int4", "right.0.weight.bits", "depth.0.weight.int2"} <= names
    check_numbers(stripped, inputs, path)


def test_linear_layers_take_integer_kernels_with_and_without_bias_and_rows(tmp_path):
    torch.manual_seed(0)
    path, inputs = tmp_path / "model.onnx", (torch.randint(0, 50, (16, 12)),)
    stripped = export(Rows().eval(), inputs, path)
    found, _ = kernels(path)
    assert found["MatMulIntegerToFloat"] == 4
    assert not {"Gemm", "MatMul"} & set(found)
    check_numbers(stripped, inputs, path)


def test_asymmetric_weights_keep_their_zero_points(tmp_path):
    torch.manual_seed(0)
    path, inputs = tmp_path / "model.onnx", (torch.randint(0, 50, (16, 12)),)
    model = Rows().eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight += 0.1
    stripped = export(
        model, inputs, path, overrides={"layers.*.weight": {"mode": "asymmetric"}}, profile="any"
    )
    assert any(step.zero_point is not None for step in stripped.modules() if hasattr(step, "zero_point"))
    check_numbers(stripped, inputs, path)


def test_a_float_weight_between_quantizers_stays_float(tmp_path):
    model, inputs = pooled()
    path = tmp_path / "model.onnx"
    stripped = export(model, inputs, path, left_out=("left.0.weight",))
    assert kernels(path)[0]["QLinearConv"] == 4
    check_numbers(stripped, inputs, path)
