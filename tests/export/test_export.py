import hashlib
import json
from dataclasses import replace

import onnx_ir
import pytest
import torch

from raysearch.config import ExportConfig
from raysearch.controller import stripped_weights
from raysearch.errors import ConfigError, ExportError
from raysearch.export import TARGETS, export_model, load_model
from raysearch.export.file_names import FILES
from raysearch.export.onnx_qdq import proto
from raysearch.export.onnx_qdq.storage import code_readers
from raysearch.export.targets.onnx import OnnxTarget
from raysearch.records import BitAssignment, CostModel, ExportManifest
from tests.support.export_cases import case, forward_all


@pytest.mark.slow
def test_every_target_is_written_verified_and_listed(tmp_path, residual):
    batches = [residual.inputs(64)]
    manifest = residual.export(tmp_path / "a" / "model", batches=batches, forward=forward_all)
    folder = tmp_path / "a" / "model"
    assert ExportManifest.from_json((folder / "manifest.json").read_text()) == manifest
    assert sorted(f.path for f in manifest.files) == sorted((*FILES, *OnnxTarget.files))
    assert {path.name for path in folder.iterdir()} == {f.path for f in manifest.files} | {"manifest.json"}
    for file in manifest.files:
        data = (folder / file.path).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest.weights_bytes == CostModel(residual.setup).weight_bytes(residual.assignment)
    exact, plain_onnx, fused_onnx = manifest.checks
    assert {layer.name for layer in fused_onnx.layers} == set(residual.setup.of_kind("activation"))
    assert all(layer.num_codes % 64 == 0 for layer in fused_onnx.layers)
    assert set(manifest.size_ratios) == {"packed", "onnx"}
    assert manifest.latency == {}
    assert (exact.target, exact.max_abs_difference, exact.num_samples) == ("packed", 0.0, 64)
    assert plain_onnx.runtime.endswith("graph optimizations off")
    assert min(plain_onnx.agreement, fused_onnx.agreement) >= 0.98
    assert any("3-bit weights" in note for note in manifest.notes)
    assert torch.equal(load_model(folder)(*batches[0]), residual.stripped(*batches[0]))


@pytest.mark.slow
def test_an_earlier_export_is_replaced_whole(tmp_path):
    for name in ("model.onnx", "manifest.json"):
        (tmp_path / name).write_text("of an earlier export")
    manifest = case("waves", 4).export(tmp_path, "packed")
    assert not (tmp_path / "model.onnx").exists()
    assert [f.path for f in manifest.files] == list(FILES)
    assert load_model(tmp_path).config.architecture == "Waves"


def test_a_fixed_batch_is_noted_and_needs_data_of_that_size(tmp_path):
    net = case("fixed", batch=5)
    manifest = net.export(tmp_path, "packed")
    assert manifest.notes == ("packed: the model fixes its batch size; the graph takes batches of 5 only.",)


def test_unknown_and_missing_targets_are_refused_before_anything_is_written(tmp_path):
    net = case("waves")
    with pytest.raises(ConfigError, match="'tflite' is unknown; known: packed, onnx, openvino, pt2"):
        net.export(tmp_path / "model", "tflite")
    with pytest.raises(ConfigError, match="no export target"):
        export_model(net.model, tmp_path / "model", ExportConfig(targets=()))
    assert not (tmp_path / "model").exists()
    assert tuple(TARGETS) == ("packed", "onnx", "openvino", "pt2", "compressed-tensors", "auto-round", "gguf")


def test_a_target_without_its_packages_is_left_out_unless_asked_for(tmp_path, no_onnx):
    net = case("waves")
    manifest = net.export(tmp_path)
    assert [check.target for check in manifest.checks] == ["packed"]
    assert manifest.notes == (
        'onnx: left out, since no_such_package is not installed (pip install "raysearch[onnx]").',
    )
    with pytest.raises(ExportError, match="needs no_such_package"):
        net.export(tmp_path, "onnx")


def test_another_assignment_is_refused(tmp_path):
    net = case("waves", 4)
    other = BitAssignment({**net.assignment.bits, "down.weight": 3})
    with pytest.raises(ExportError, match=r"'down\.weight' has 4 bits in the stripped module and 3 in the"):
        export_model(replace(net.model, assignment=other), tmp_path)
    groups = {g: replace(group, schemes=(4, "4g6", 8)) for g, group in net.setup.groups.items()}
    other = BitAssignment({**net.assignment.schemes, "down.weight": "4g3"})
    with pytest.raises(
        ExportError, match=r"'down\.weight' has a scale per channel .* and per group of 1 along"
    ):
        export_model(replace(net.model, assignment=other, setup=replace(net.setup, groups=groups)), tmp_path)
    fewer = {name: bits for name, bits in net.assignment.bits.items() if name != "down.weight"}
    with pytest.raises(ExportError, match="the cost model says"):
        export_model(replace(net.model, assignment=BitAssignment(fewer)), tmp_path)


def test_a_target_that_differs_leaves_no_manifest(tmp_path, monkeypatch):
    net = case("waves", 4)
    real = load_model

    def damaged(folder):
        model = real(folder)
        model.tensors.get_submodule("gate").bias.add_(1e-3)
        return model

    monkeypatch.setattr("raysearch.export.targets.packed.load_model", damaged)
    with pytest.raises(ExportError, match="'packed' differs from the stripped module"):
        net.export(tmp_path, "packed")
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.slow
def test_an_onnx_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    net = case("seven", 8)
    real = proto.fuse_regions

    def negate(model, **options):
        real(model, **options)
        for value in code_readers(model):
            value.const_value = onnx_ir.tensor(-value.const_value.numpy(), name=value.name)

    monkeypatch.setattr(proto, "fuse_regions", negate)
    with pytest.raises(ExportError, match=r"'onnx' differs from the stripped module in onnxruntime"):
        net.export(tmp_path, "onnx")


def test_the_manifest_carries_the_costs(tmp_path):
    net = case("tied", 3)
    manifest = net.export(tmp_path, "packed")
    data = json.loads((tmp_path / "manifest.json").read_text())
    assert data["costs"] == manifest.costs == CostModel(net.setup).costs(net.assignment)
    assert len(stripped_weights(net.stripped, net.setup)) == 1


@pytest.mark.slow
def test_latency_is_paired_with_the_network_in_float(tmp_path):
    net = case("twins", 7)
    manifest = net.export(tmp_path, "onnx", measure_latency=True)
    assert set(manifest.latency) == {"onnx", "float"}
    assert min(manifest.latency.values()) > 0
    assert ExportManifest.from_json((tmp_path / "manifest.json").read_text()) == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.onnx"]
