import onnx
import pytest
import torch

from raysearch.errors import ExportError, StorageError
from raysearch.export import TARGETS
from raysearch.export.extras import Extra
from raysearch.export.targets import openvino as openvino_target
from raysearch.export.targets.openvino import OpenVinoModel, OpenVinoTarget
from tests.contracts.target_contract import GraphTargetContract
from tests.support.export_cases import case, forward_all


class TestOpenVinoTarget(GraphTargetContract):
    target = TARGETS["openvino"]


def test_the_file_runs_in_openvino_in_its_containers(tmp_path):
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    net = case("residual")
    batch = net.inputs(32)
    manifest = net.export(tmp_path, "openvino", batches=[batch], forward=forward_all)
    assert manifest.checks[0].runtime.startswith("openvino 20")
    assert manifest.checks[0].agreement >= 0.98
    proto = onnx.load(tmp_path / OpenVinoTarget.files[0])
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in proto.graph.initializer}
    assert {"INT4", "INT8"} <= kinds
    assert "INT2" not in kinds
    assert not proto.functions
    model = OpenVinoModel(tmp_path / OpenVinoTarget.files[0])
    assert model(image=batch[0]).shape == (32, 10)
    with pytest.raises(TypeError, match=r"takes the tensors \(image\)"):
        model(torch.zeros(1), torch.zeros(1))
    (tmp_path / "damaged.onnx").write_bytes(b"nothing")
    with pytest.raises(StorageError, match=r"OpenVINO .* cannot load"):
        OpenVinoModel(tmp_path / "damaged.onnx")


def test_a_missing_extra_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_target, "OPENVINO", Extra("openvino", ("onnx", "no_such_package")))
    with pytest.raises(ExportError, match=r'needs no_such_package; .*`pip install "raysearch\[openvino\]"`'):
        OpenVinoModel(tmp_path / "model.onnx")
