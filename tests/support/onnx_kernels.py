"""A calibrated export of a net as an ONNX file, and what onnxruntime makes of it."""

from collections import Counter

import onnx
import onnxruntime as ort
import torch

from raysearch.calibration import calibrate_model
from raysearch.config import CalibrationConfig, PlacementConfig
from raysearch.controller import create_controller
from raysearch.export import StrippedModel
from raysearch.export.onnx_qdq.session import OnnxModel
from raysearch.export.verification.code_flips import count_flips
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment
from tests.support.export_cases import write_onnx

MIX = (8, 4, 3, 2)


def export(model, inputs, path, *, activation=8, overrides=None, left_out=(), profile="onnxruntime-cpu"):
    setup = place_quantizers(
        model,
        inputs,
        PlacementConfig(activation_bit_widths=(activation,), profile=profile, overrides=overrides or {}),
    )
    weights = [g for g in setup.groups if setup.group_kind(g) == "weight"]
    bits = {g: MIX[index % 4] for index, g in enumerate(weights) if g not in left_out}
    bits |= {g: activation for g in setup.groups if setup.group_kind(g) == "activation"}
    ranges = calibrate_model(
        model, setup, [inputs], CalibrationConfig(weights="min_max", activations="min_max")
    )
    controller = create_controller(model, setup, ranges, BitAssignment(bits))
    stripped = controller.strip_model()
    write_onnx(StrippedModel(stripped, setup, BitAssignment(bits), inputs), path)
    return stripped


def kernels(path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = f"{path}.optimized"
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(f"{path}.optimized").graph
    constants = {tensor.name for tensor in graph.initializer}
    decoded = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    return Counter(node.op_type for node in graph.node), decoded


def check_numbers(stripped, inputs, path):
    """The file says what the module computes, and kernels do what the file says."""
    with torch.no_grad():
        expected = stripped(*inputs)
    model = OnnxModel(path, optimized=False)
    feeds = []
    model.record = feeds.append
    assert (model(*inputs) - expected).abs().mean() < 0.003 * (expected.max() - expected.min())
    flips = count_flips(path, feeds)
    assert len(flips) > 3
    for layer in flips:
        assert layer.max_steps <= 1, layer
        assert layer.num_flips <= 0.002 * layer.num_codes + 5, layer
