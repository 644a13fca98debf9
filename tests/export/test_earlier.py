"""An export where the packages of an earlier target are missing: its files stay, with what was checked."""

import hashlib

import pytest

from raysearch.artifacts import Storage
from raysearch.errors import ExportError
from raysearch.export.earlier import take_over
from raysearch.export.extras import Extra
from raysearch.export.targets.registry import TARGETS
from raysearch.records import ExportedFile, ExportManifest, TargetCheck


def make_manifest(folder, target, paths, notes=()):
    """Files with their own names as content, and a manifest of them."""
    files = []
    for path in paths:
        data = path.encode()
        Storage(folder).write_bytes(path, data)
        files.append(ExportedFile(path, hashlib.sha256(data).hexdigest(), len(data)))
    check = TargetCheck(target, "a runtime", 0.0, 0.0, 1.0, 4)
    manifest = ExportManifest(tuple(files), (check,), 10, {"size": 10.0}, notes, {target: 1.5})
    Storage(folder).write_bytes("manifest.json", manifest.to_json().encode())
    return manifest


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(type(TARGETS["onnx"]), "extra", Extra("gone", ("no_such_package",)))
    make_manifest(tmp_path / "new", "packed", ["model.safetensors", "config.json"], ("packed: small.",))
    earlier = make_manifest(tmp_path / "old", "onnx", TARGETS["onnx"].files, ("onnx: wide.", "other: x."))
    return tmp_path / "new", tmp_path / "old", earlier


def test_files_checks_and_notes_are_taken_over(folders):
    new, old, earlier = folders
    merged = take_over(["onnx"], earlier, Storage(old), new)
    assert merged == ExportManifest.from_json((new / "manifest.json").read_text())
    assert [check.target for check in merged.checks] == ["packed", "onnx"]
    assert merged.size_ratios == {"packed": 1.5, "onnx": 1.5}
    assert all((new / file.path).read_text() == file.path for file in merged.files)
    assert {file.path for file in merged.files} >= {"model.safetensors", *TARGETS["onnx"].files}
    assert merged.notes[:2] == ("packed: small.", "onnx: wide.")
    assert merged.notes[2].startswith("onnx: as it was exported and checked before, since no_such_package is")
    assert merged.notes[2].endswith('(`pip install "raysearch[gone]"`).')


def test_a_damaged_file_is_not(folders):
    new, old, earlier = folders
    (old / earlier.files[0].path).write_text("")
    with pytest.raises(ExportError, match=r"is damaged, and cannot be written anew: no_such_package"):
        take_over(["onnx"], earlier, Storage(old), new)
