import onnx
import pytest
import torch

from raysearch.errors import ExportError, StorageError
from raysearch.export import export_model
from raysearch.export.targets import openvino as openvino_target
from raysearch.export.targets.openvino import OpenVinoModel, require_openvino
from tests.support.export_cases import case, forward_all


def test_the_file_runs_in_openvino_in_its_containers(tmp_path):
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    net = case("residual")
    batch = net.inputs(32)
    manifest = export_model(
        net.stripped, net.setup, net.assignment, net.example, tmp_path,
        targets=["openvino"], batches=[batch], forward=forward_all,
    )  # fmt: skip
    assert manifest.checks[0].runtime.startswith("openvino 20")
    assert manifest.checks[0].agreement >= 0.98
    proto = onnx.load(tmp_path / openvino_target.FILE)
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in proto.graph.initializer}
    assert {"INT4", "INT8"} <= kinds
    assert "INT2" not in kinds
    assert not proto.functions
    model = OpenVinoModel(tmp_path / openvino_target.FILE)
    assert model(image=batch[0]).shape == (32, 10)
    with pytest.raises(TypeError, match=r"takes the tensors \(image\)"):
        model(torch.zeros(1), torch.zeros(1))
    (tmp_path / "damaged.onnx").write_bytes(b"nothing")
    with pytest.raises(StorageError, match=r"OpenVINO .* cannot load"):
        OpenVinoModel(tmp_path / "damaged.onnx")


def test_a_missing_extra_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(openvino_target, "missing_openvino", lambda: ["openvino"])
    with pytest.raises(ExportError, match=r'needs openvino; .*`pip install "raysearch\[openvino\]"`'):
        require_openvino()
