import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import raysearch
from raysearch.cli import app
from raysearch.errors import ConfigError, ExportError, StorageError
from raysearch.export import verify_folder
from tests.support.export_cases import Twins, case


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    net = case("twins")
    folder = tmp_path_factory.mktemp("complete")
    source = {"run_id": "r1", "budget": ["avg_bits<=4"]}
    net.export(folder, "packed", "onnx", "pt2", source=source)
    return folder


@pytest.fixture
def copied(complete, tmp_path):
    return shutil.copytree(complete, tmp_path / "model")


def rehash(folder, name):
    """Make the manifest fit a changed file."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == name:
            data = (folder / name).read_bytes()
            entry.update(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def shift_bias(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.2.bias"] += 100.0 * torch.arange(6)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.slow
def test_every_target_is_run_on_generated_inputs(complete):
    found = raysearch.verify(complete, factory=Twins)
    assert (found.num_files, found.inputs) == (5, "generated")
    assert [c.target for c in found.checks] == ["packed", "onnx", "onnx", "pt2"]
    assert all(c.num_samples >= 64 for c in found.checks)
    assert found.checks[0].max_abs_difference == found.checks[3].max_abs_difference == 0.0
    assert verify_folder(complete, factory=Twins).to_dict() == found.to_dict()
    config = json.loads((complete / "config.json").read_text())
    assert config["source"] == {"run_id": "r1", "budget": ["avg_bits<=4"]}
    assert config["versions"] == {"raysearch": raysearch.__version__, "torch": torch.__version__}


def test_changed_cut_and_missing_files_are_all_named(copied):
    (copied / "model.onnx").write_bytes(b"x")
    (copied / "model.pt2").unlink()
    with pytest.raises(ExportError) as error:
        verify_folder(copied)
    assert "model.onnx differs from manifest.json" in str(error.value)
    assert "having 1 bytes instead of" in str(error.value)
    assert "model.pt2 is listed in manifest.json and missing" in str(error.value)


@pytest.mark.slow
def test_files_that_fit_the_manifest_but_not_each_other_are_found_by_running(copied):
    shift_bias(copied)
    rehash(copied, "model.safetensors")
    with pytest.raises(ExportError, match=r"'onnx' differs from the stripped module in onnxruntime"):
        verify_folder(copied)
    with pytest.raises(ExportError, match=r"'pt2' differs from the stripped module"):
        verify_folder(copied, targets=["pt2"])
    assert len(verify_folder(copied, targets=["packed"]).checks) == 1


def test_what_is_not_there_is_told(copied, tmp_path):
    with pytest.raises(StorageError, match=r"has no manifest\.json"):
        verify_folder(tmp_path)
    with pytest.raises(ConfigError, match="no target 'openvino'; it has packed, onnx, pt2"):
        verify_folder(copied, targets=["openvino"])
    (copied / "notes.txt").write_text("mine")
    assert verify_folder(copied, targets=["packed"]).notes == (
        "the manifest does not list notes.txt, so it was not checked.",
    )


def test_a_target_that_cannot_run_here_is_named_with_the_command(copied, no_onnx):
    with pytest.raises(
        ExportError, match=r'no_such_package; install them with `pip install "raysearch\[onnx\]"`'
    ):
        verify_folder(copied)
    assert len(verify_folder(copied, targets=["packed", "pt2"]).checks) == 2


def test_a_manifest_of_a_newer_schema_or_outside_the_folder_is_refused(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 7}))
    with pytest.raises(StorageError, match=r"schema version 7; this raysearch reads 1\. Update it with `pip"):
        verify_folder(copied)
    manifest["files"][0]["path"] = "../config.json"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match="no name of a file below a folder"):
        verify_folder(copied)


TASK = """
import torch
from raysearch import Task
from tests.support.export_cases import Twins

def task():
    torch.manual_seed(0)
    data = [torch.randn(5, 6)]
    return Task(Twins(), (torch.randn(2, 6),), calibration=data, validation=data)
"""


def test_the_command_runs_on_a_tasks_data_and_its_exit_code_tells(copied, tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    arguments = ["verify", str(copied), "--task", f"{tmp_path / 'task.py'}:task", "--target", "packed"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "5 given samples, max difference 0, mean 0" in " ".join(found.output.split())
    data = bytearray((copied / "architecture.pt2").read_bytes())
    data[100] ^= 1
    (copied / "architecture.pt2").write_bytes(data)
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 1
    assert "architecture.pt2 differs from manifest.json: it was changed, its SHA-256" in found.output
    assert CliRunner().invoke(app, ["verify", str(tmp_path)]).exit_code == 2
