"""The runs of a storage, whatever state each is in."""

import time

import pytest

from raysearch.artifacts import RunStore, codecs, list_runs, owned
from raysearch.errors import StorageError
from raysearch.records import RunStatus


def start(storage, name, status):
    store = RunStore(storage, name)
    store.create({"task": "net.py:make_task", "budget": ["size<=10%"]})
    store.save(codecs.STATUS, status)
    return store


def test_every_run_is_listed_and_nothing_else(tmp_path):
    start(tmp_path, "b-failed", RunStatus("b-failed", "failed", "search", message="no", updated=5.0))
    living = start(tmp_path, "a-living", RunStatus("a-living", "running", "search", 3, 8, updated=5.0))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no run")
    (tmp_path / "file").write_text("no folder")
    before = time.time()
    with owned(living):
        first, second = list_runs(tmp_path)
    assert (first.run_id, second.run_id) == ("a-living", "b-failed")
    assert (first.task, first.budget, first.result) == ("net.py:make_task", ("size<=10%",), None)
    # The driver's heartbeat is younger than its last status.
    assert before <= first.status.updated <= time.time()
    assert (second.status.state, second.status.updated) == ("failed", 5.0)


def test_a_damaged_run_does_not_hide_the_others(tmp_path):
    start(tmp_path, "good", RunStatus("good", "failed"))
    start(tmp_path, "torn", RunStatus("torn", "failed"))
    (tmp_path / "torn" / "status.json").write_text("{")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text("[]")
    states = {listed.run_id: listed.status.state for listed in list_runs(tmp_path)}
    assert states == {"good": "failed", "torn": "unknown", "odd": "unknown"}


def test_an_empty_storage_has_no_runs(tmp_path):
    assert list_runs(tmp_path / "none") == ()
    with pytest.raises(StorageError):
        list_runs("nowhere://bucket/runs")
