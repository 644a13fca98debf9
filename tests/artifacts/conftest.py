"""Shares the made-up records of the report's tests."""

import pytest

from raysearch.artifacts import RunStore, codecs, hash_file
from raysearch.records import ExportedFile, ExportManifest, RunStatus
from tests.support.run_records import (
    make_fine_tune,
    make_result,
    make_search,
    make_sensitivity,
    make_setup,
)

CONFIG = {"task": "tasks:digits", "search": {"num_trials": 64, "seed": 0}, "budget": ["avg_bits<=4"]}


@pytest.fixture
def store(tmp_path):
    """A run that was just created."""
    made = RunStore(tmp_path / "runs", "run-1")
    made.create(CONFIG, {"model": "abc"}, {"torch": "2.13.0"})
    return made


@pytest.fixture
def done(store, tmp_path):
    """A finished run with a model of three files."""
    setup = make_setup(3)
    search = make_search(setup, 12)
    folder = tmp_path / "export"
    (folder / "onnx").mkdir(parents=True)
    contents = {"model.safetensors": b"x" * 4000, "config.json": b"{}", "onnx/model.onnx": bytes(range(256))}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    files = tuple(ExportedFile(n, hash_file(folder / n), len(d)) for n, d in contents.items())
    (folder / "manifest.json").write_text(ExportManifest(files, (), 4000, {"size": 4000.0}).to_json())
    store.save(codecs.SETUP, setup)
    store.save(codecs.SENSITIVITY, make_sensitivity(setup))
    store.save(codecs.SEARCH, search)
    store.save(codecs.FINE_TUNE, make_fine_tune())
    store.save_checkpoint("best.safetensors", b"state")
    store.save_model(folder)
    store.save(codecs.RESULT, make_result(setup, search, run_id="run-1"))
    store.save(codecs.STATUS, RunStatus("run-1", "done", "export"))
    return store
