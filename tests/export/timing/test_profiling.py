"""Times of layers: every layer has one, they add up, and the graphs that are timed are the right ones."""

import copy
from dataclasses import replace

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn.utils import parametrize

from raysearch.controller import stripped_weights
from raysearch.errors import ConfigError
from raysearch.export import profile_onnxruntime
from raysearch.export.onnx_qdq.capture import capture
from raysearch.export.onnx_qdq.floats import float_again
from raysearch.export.onnx_qdq.proto import finish
from raysearch.export.onnx_qdq.session import OnnxModel
from raysearch.export.timing.layer_nodes import layer_seconds
from raysearch.quantizer import Quantizer
from raysearch.records import BitAssignment, CostModel, LatencyProfile
from tests.support.export_cases import case


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tied", "twins"])
def test_every_layer_has_a_time_and_they_add_up_to_the_prediction(name):
    net = case(name, 8)
    profile = profile_onnxruntime(net.stripped, net.setup, net.example, batch=3, rounds=1)
    assert list(profile.layers) == list(net.setup.of_kind("weight"))
    for layer, levels in profile.layers.items():
        assert min(levels.values()) > 0, layer
        assert not {"fused away", "not found"} & set(profile.kernels[layer].values()), layer
    assert profile.machine["batch"] == "3"
    assert profile.machine["inputs"].startswith("3x")
    assert set(profile.checks) == {"float", "8", "half"}
    total = profile.other_seconds + sum(levels["float"] for levels in profile.layers.values())
    assert profile.checks["float"]["predicted"] == pytest.approx(total, rel=1e-6)
    assert LatencyProfile.from_json(profile.to_json()) == profile


@pytest.mark.slow
def test_the_prediction_at_8_bits_is_the_cost_models():
    net = case("residual", 8)
    profile = profile_onnxruntime(net.stripped, net.setup, net.example, rounds=1)
    assert any(levels["8"].startswith("QLinear") for levels in profile.kernels.values())
    costs = CostModel(replace(net.setup, latency=profile)).costs(
        BitAssignment(dict.fromkeys(net.setup.groups, 8))
    )
    assert profile.checks["8"]["predicted"] == pytest.approx(costs["latency"], rel=1e-6)


def float_twin(stripped):
    """A copy of a stripped module that computes in float: plain weights, quantizers off."""
    twin = copy.deepcopy(stripped)
    for module in list(twin.modules()):
        if isinstance(module, Quantizer):
            module.enabled = False
        if not parametrize.is_parametrized(module):
            continue
        # A class of its own: deepcopy shares the one that parametrize made, and removal changes it.
        shared = type(module)
        body = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, body)
        for name in list(module.parametrizations):
            value = getattr(module, name).detach().clone()
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return twin


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_the_graph_in_float_computes_what_the_model_does_without_quantizers(bits, tmp_path):
    net = case("residual", bits)
    weights = stripped_weights(net.stripped, net.setup)
    model, _ = capture(net.stripped, weights, net.example)
    float_again(model, weights.values(), net.setup.of_kind("activation"))
    proto = finish(model, weights)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in proto.graph.node}
    (tmp_path / "float.onnx").write_bytes(proto.SerializeToString())
    with torch.no_grad():
        expected = float_twin(net.stripped)(*net.example)
    found = OnnxModel(tmp_path / "float.onnx")(*net.example)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_numbers_below_one_are_refused():
    net = case("residual", 8)
    with pytest.raises(ConfigError, match="batch is 0"):
        profile_onnxruntime(net.stripped, net.setup, net.example, batch=0)


def optimized_graph():
    """A convolution of layer 0 with a copy before and a pooling after; a product of layer 12."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1], [1.0])
    nodes = [
        helper.make_node("ReorderInput", ["x"], ["a"], "ReorderInput"),
        helper.make_node("Conv", ["a", "w"], ["b"], "layer0.4.0_nchwc"),
        helper.make_node("MaxPool", ["b"], ["layer0.5.0"], "pool"),
        helper.make_node("ReorderOutput", ["layer0.5.0"], ["c"], "ReorderOutput"),
        helper.make_node("MatMul", ["c", "w"], ["d"], "layer12.6_token_3"),
        helper.make_node("Neg", ["d"], ["e"], ""),
    ]
    return onnx.ModelProto(graph=helper.make_graph(nodes, "g", [], [], [weight]))


def test_nodes_that_onnxruntime_made_go_to_the_layer_before_them():
    seconds = {"ReorderInput": 1.0, "layer0.4.0_nchwc": 2.0, "pool": 4.0, "ReorderOutput": 8.0}
    found = layer_seconds(optimized_graph(), {**seconds, "layer12.6_token_3": 16.0, "Neg_7": 32.0})
    assert {index: (layer.kernel, layer.rest) for index, layer in found.items()} == {
        -1: (0.0, 33.0),
        0: (2.0, 12.0),
        12: (16.0, 0.0),
    }
    assert found[12].operation == "MatMul"
