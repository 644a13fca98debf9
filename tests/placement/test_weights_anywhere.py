"""Weights that no module of torch holds: matrix products, einsum, bilinear, lists; and what stays float."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysearch.calibration import calibrate_model
from raysearch.config import PlacementConfig
from raysearch.controller import create_controller
from raysearch.placement import place_quantizers
from raysearch.quantizer import Quantizer
from raysearch.records import BitAssignment


class Read(nn.Module):
    """A parameter `w` that a function reads, and a head."""

    def __init__(self, shape, function, features):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape) * 0.3)
        self.function = function
        self.head = nn.Linear(features, 2)

    def forward(self, x):
        return self.head(self.function(x, self.w))


def with_zero(x, w):
    return torch.addmm(torch.zeros(w.shape[1]), x.reshape(-1, x.shape[-1]), w).view(*x.shape[:-1], -1)


# Of x [2, 5, 8]: shape, function, features, channel axis, MACs a sample, operand.
READS = {
    "product": ((8, 6), lambda x, w: x @ w, 6, 1, 5 * 48, "matmul0.input0"),
    "turned": ((6, 8), lambda x, w: torch.matmul(x, w.t()), 6, 0, 5 * 48, "matmul0.input0"),
    "from the left": ((6, 5), lambda x, w: w @ x, 8, 0, 6 * 5 * 8, "matmul0.input1"),
    "linear of a turned one": ((8, 6), lambda x, w: F.linear(x, w.T), 6, 1, 5 * 48, "linear0.input0"),
    "addmm": ((8, 6), with_zero, 6, 1, 5 * 48, "matmul0.input0"),
    "batched": ((5, 8, 6), lambda x, w: (x.transpose(0, 1) @ w).transpose(0, 1), 6, 2, 240, "matmul0.input0"),
    "one of several": ((3, 8, 6), lambda x, w: x @ w[1] + x @ w[2], 6, 2, 2 * 5 * 48, "matmul0.input0"),
    "einsum": ((8, 6), lambda x, w: torch.einsum("btc,cd->btd", x, w), 6, 1, 5 * 48, "einsum0.input0"),
    "einsum of a list": ((3, 2, 8), lambda x, w: torch.einsum("hdc,...c->...hd", [w, x]).flatten(2), 6, 0,
                         5 * 48, "einsum0.input1"),
    "bilinear": ((6, 8, 8), lambda x, w: F.bilinear(x, x, w), 6, 0, 5 * 6 * 64, "bilinear0.input0"),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_a_weight_is_quantized_wherever_it_is_read(name):
    torch.manual_seed(0)
    shape, function, features, axis, macs, operand = READS[name]
    model = Read(shape, function, features)
    x = torch.randn(2, 5, 8)
    setup = place_quantizers(model, (x,))
    point = setup.points["w"]
    assert (point.granularity.axis, point.macs) == (axis, macs)
    assert point.input_point == operand
    assert setup.coverage.num_quantizable == setup.coverage.num_weights
    ranges = calibrate_model(model, setup, [x])
    controller = create_controller(model, setup, ranges, BitAssignment.uniform(setup, 4))
    seen = []
    quantizer = next(m for m in model.modules() if isinstance(m, Quantizer) and m.name == operand)
    handle = quantizer.register_forward_hook(lambda module, args, output: seen.append(output))
    quantized = model(torch.randn(3, 5, 8))
    handle.remove()
    assert seen
    stripped = controller.strip_model(do_copy=True)
    x = torch.randn(3, 5, 8)
    assert torch.equal(stripped(x), model(x))
    assert quantized.shape == (3, quantized.shape[1], 2)


def test_parameters_of_a_list_are_quantized():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.listed = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(2)])
            self.named = nn.ParameterDict({"last": nn.Parameter(torch.randn(4, 2))})

        def forward(self, x):
            for weight in self.listed:
                x = torch.relu(x @ weight)
            return x @ self.named["last"]

    model, x = Experts(), torch.randn(3, 4)
    setup = place_quantizers(model, (x,))
    assert {"listed.0", "listed.1", "named.last"} == setup.of_kind("weight").keys()
    ranges = calibrate_model(model, setup, [x])
    controller = create_controller(copy.deepcopy(model), setup, ranges, BitAssignment.uniform(setup, 2))
    stripped = controller.strip_model(do_copy=True)
    assert torch.equal(stripped(x), controller.model(x))
    assert not torch.equal(stripped(x), model(x))


class Odd(nn.Module):
    """Weights that stay float, each for another reason, beside one that does not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.standard = nn.Parameter(torch.randn(4, 4, 3))
        self.places = nn.Parameter(torch.zeros(4, 6))
        self.a, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 6))
        self.unread = nn.Parameter(torch.randn(3, 3))
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        standard = (self.standard - self.standard.mean()) / self.standard.std()
        return self.out(F.conv1d(self.conv(x) + self.places, standard, padding=1) * (self.a @ self.b))


def test_every_weight_that_stays_float_has_its_reason():
    setup = place_quantizers(Odd(), (torch.randn(2, 4, 6),), PlacementConfig(ignored_scopes=("out",)))
    coverage = setup.coverage
    reasons = {weight.name: weight.reason for weight in coverage.floating}
    assert reasons == {
        "standard": "computed in the forward (mean, sub, std, div) before conv1d reads it",
        "places": "read by add, which no quantizer serves as a layer",
        "a": "computed in the forward (matmul) before mul reads it",
        "b": "computed in the forward (matmul) before mul reads it",
        "unread": "the forward of the example inputs does not read it",
        "out.weight": "left out by placement.target_scopes or ignored_scopes",
    }
    assert (coverage.num_quantizable, coverage.num_weights) == (48, 48 + 48 + 24 + 8 + 12 + 9 + 12)
    assert [weight.name for weight in coverage.left_out()] == ["standard", "places", "a", "b", "unread"]
    assert "101 of 161 (62.7%) stay float" in coverage.broken_promise("avg_bits<=4")
    # What is told decides nothing, so runs of before it was told stay the same.
    assert setup.fingerprint() == type(setup).from_json(setup.to_json()).fingerprint()
    assert type(setup).from_json(setup.to_json()) == setup
