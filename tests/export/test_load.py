import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysearch.errors import StorageError
from raysearch.export import load_model
from raysearch.export.model_config import VERSION

_FRESH = """
import sys, torch
from raysearch.export.load import load_model
model = load_model(sys.argv[1])
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save(model(inputs), sys.argv[3])
print(sorted(m for m in ("ray", "optuna", "onnx", "onnxruntime", "tests", "export.nets") if m in sys.modules))
"""


def rewrite(folder, change):
    """Change the tensors; the manifest goes, as its hashes would find the change first."""
    (folder / "manifest.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, change):
    (folder / "manifest.json").unlink(missing_ok=True)
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


@pytest.mark.process
def test_a_fresh_process_needs_neither_ray_nor_optuna_nor_the_models_code(exported, residual, tmp_path):
    inputs = residual.inputs(5)[0]
    torch.save(inputs, tmp_path / "in.pt")
    command = [sys.executable, "-c", _FRESH, exported, tmp_path / "in.pt", tmp_path / "out.pt"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    found = subprocess.run(
        [str(part) for part in command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), residual.stripped(inputs))


@pytest.mark.slow
def test_arguments_go_by_position_or_by_keyword(exported, residual):
    model = load_model(exported)
    (image,) = residual.inputs(2)
    assert torch.equal(model(image=image), model(image))
    for args, kwargs in [((), {}), ((image,), {"image": image}), ((), {"image": image, "mask": image})]:
        with pytest.raises(TypeError, match=r"exported with the arguments \(image\)"):
            model(*args, **kwargs)


def test_a_loaded_model_holds_codes_and_stays_in_eval_mode(exported, residual):
    model = load_model(exported)
    state = model.state_dict()
    assert state["tensors.stem.weight.codes"].dtype == torch.int8
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.train()
    assert not model.training
    assert torch.equal(model.eval()(*residual.example), residual.stripped(*residual.example))
    assert "6 integer weights" in repr(model)


def test_nothing_is_unpickled(exported, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    assert "6 integer weights" in repr(load_model(exported))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "architecture.pt2"])
def test_a_changed_or_missing_file_is_named(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(StorageError, match=rf"{name} differs from manifest\.json"):
        load_model(folder)
    (folder / name).write_bytes(data[:-7])
    with pytest.raises(StorageError, match=rf"{name} differs from manifest\.json"):
        load_model(folder)
    (folder / name).unlink()
    with pytest.raises(StorageError, match=rf"has no {name}"):
        load_model(folder)


def test_a_file_the_manifest_does_not_list_is_refused(folder):
    data = json.loads((folder / "manifest.json").read_text())
    data["files"] = [entry for entry in data["files"] if entry["path"] != "architecture.pt2"]
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(StorageError, match=r"architecture\.pt2 is not listed"):
        load_model(folder)


@pytest.mark.parametrize("name", ["head.bias", "head.weight.scale", "stem.weight.packed"])
def test_a_missing_tensor_is_named(folder, name):
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(StorageError, match=rf"missing \['{name}'\]"):
        load_model(folder)


def test_an_unexpected_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(StorageError, match=r"unexpected \['extra'\]"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head.bias", torch.zeros(9)),
        ("head.bias", torch.zeros(10, dtype=torch.float16)),
        ("stem.weight.packed", torch.zeros(3, dtype=torch.uint8)),
        ("stem.weight.scale", torch.ones(1)),
    ],
)
def test_a_tensor_of_the_wrong_shape_or_type_is_named(folder, name, value):
    rewrite(folder, lambda tensors: tensors.update({name: value}))
    with pytest.raises(StorageError, match=rf"'{name}' is .* but config\.json says"):
        load_model(folder)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_is_refused(folder, bad):
    rewrite(folder, lambda tensors: tensors["head.weight.scale"].fill_(bad))
    with pytest.raises(StorageError, match=r"'head\.weight\.scale' holds values"):
        load_model(folder)


def test_a_truncated_tensor_file_is_refused_without_a_manifest_too(folder):
    (folder / "manifest.json").unlink()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(StorageError, match=r"model\.safetensors is damaged"):
        load_model(folder)


def test_other_bits_or_a_huge_shape_are_found_before_anything_is_allocated(folder):
    def more_bits(data):
        data["quantization_config"]["weights"]["stem.weight"]["bits"] = 8

    def huge(data):
        data["quantization_config"]["weights"]["stem.weight"]["shape"] = [8, 10**9, 10**9, 3]

    reconfigure(folder, more_bits)
    with pytest.raises(StorageError, match=r"'stem\.weight\.packed' is U8"):
        load_model(folder)
    reconfigure(folder, huge)
    with pytest.raises(StorageError, match=r"'stem\.weight' of shape .* is larger than any tensor"):
        load_model(folder)


def test_a_newer_version_is_refused(folder):
    reconfigure(folder, lambda data: data["quantization_config"].update(version=VERSION + 1))
    with pytest.raises(
        StorageError,
        match=r"has schema version 5; this raysearch reads up to 4\. Update it with `pip install --upgrade",
    ):
        load_model(folder)
