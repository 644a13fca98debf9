"""Weights with scales per group in an ONNX file, and what onnxruntime makes of them."""

from collections import Counter

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from raysearch.export.onnx_qdq.capture import capture
from raysearch.export.onnx_qdq.floats import float_again
from raysearch.export.onnx_qdq.proto import finish
from raysearch.export.onnx_qdq.session import OnnxModel
from tests.support.export_cases import write_onnx
from tests.support.grouped_cases import grouped


def executed(path):
    """Counts of the operations that onnxruntime runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def blocked(proto):
    """Each DequantizeLinear with blocks: its inputs as tensors, and its attributes."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if any(a.name == "block_size" for a in node.attribute)]
    return [([stored[name] for name in n.input], {a.name: a.i for a in n.attribute}) for n in nodes]


def difference(net, path, optimized):
    inputs = net.inputs(5)
    with torch.no_grad():
        return float((OnnxModel(path, optimized)(*inputs) - net.stripped(*inputs)).abs().max())


@pytest.mark.slow
def test_zero_points_are_of_the_codes_type_and_the_opset_is_that_of_blocks(tmp_path):
    path = tmp_path / "model.onnx"
    write_onnx(grouped("rows", 4, 32, asymmetric=True, activations=False).model, path)
    proto = onnx.load(path)
    assert proto.opset_import[0].version == 21
    readers = blocked(proto)
    assert len(readers) == 5
    for tensors, _ in readers:
        assert [t.data_type for t in tensors] == [TensorProto.INT4, TensorProto.FLOAT, TensorProto.INT4]
    names = {tensors[0].name for tensors, _ in readers}
    assert names == {f"{layer}.weight.int4" for layer in ("table", "first", "second", "conv", "up")}
    # 3 kernel positions a channel: [16, 32 · 3] of the convolution, [8, 16 · 3] of the transposed one.
    shapes = {tensors[0].name.split(".")[0]: list(tensors[0].dims) for tensors, _ in readers}
    assert (shapes["conv"], shapes["up"]) == ([16, 96], [8, 48])


def test_symmetric_groups_store_no_zero_points(tmp_path):
    path = tmp_path / "model.onnx"
    write_onnx(grouped("rows", 4, 32, activations=False).model, path)
    assert {len(tensors) for tensors, _ in blocked(onnx.load(path))} == {2}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_weight_only_products_become_matmulnbits(tmp_path, bits):
    path = tmp_path / "model.onnx"
    net = grouped("rows", bits, 32, asymmetric=True, activations=False)
    write_onnx(net.model, path)
    # Of 48 inputs a group has 24, and the kernel takes powers of 2 from 16.
    assert executed(path)["MatMulNBits"] == 1
    assert difference(net, path, optimized=False) < 1e-5
    assert difference(net, path, optimized=True) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "residual", "tied", "twins", "encoder"])
def test_no_integer_kernel_is_made_of_groups_behind_quantizers(tmp_path, name):
    """onnxruntime 1.32 makes kernels of them that fail when they run."""
    path = tmp_path / "model.onnx"
    net = grouped(name, 8, 32 if name == "rows" else 2, asymmetric=True)
    write_onnx(net.model, path)
    counts = executed(path)
    assert not counts["MatMulIntegerToFloat"]
    assert not counts["MatMulNBits"]
    inputs = net.inputs(5)
    for optimized in (False, True):
        OnnxModel(path, optimized)(*inputs)


@pytest.mark.slow
def test_batch_norm_goes_into_the_scales_of_groups(tmp_path):
    path = tmp_path / "model.onnx"
    net = grouped("rows", 4, 32, asymmetric=True)
    net.stripped.norm.running_var.uniform_(0.5, 2)
    net.stripped.norm.weight.data.uniform_(-1, 1)
    write_onnx(net.model, path)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    assert difference(net, path, optimized=False) < 1e-5


@pytest.mark.slow
def test_groups_become_float_again():
    net = grouped("rows", 4, 32, asymmetric=True, activations=False)
    graph, _ = capture(net.stripped, net.model.weights, net.example)
    float_again(graph, net.model.weights.values(), ())
    proto = finish(graph, {})
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    expected = net.stripped.conv.weight.detach().numpy()
    assert any(w.shape == expected.shape and (w == expected).all() for w in weights.values())
