import math
import os
import time

import pytest

from raysearch.artifacts import RunStore, Storage, owned
from raysearch.temporary import (
    ABANDONED_SECONDS,
    is_abandoned,
    scratch_folder,
    short_folder,
    start_ticks,
    temporary_name,
)


def of_a_dead_process(name):
    """The name as an earlier process of this number would have made it."""
    ticks = start_ticks(os.getpid())
    assert f"-{ticks:x}-" in name
    return name.replace(f"-{ticks:x}-", f"-{ticks - 1:x}-")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """In place of the system's temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_living_process_still_writes_and_a_dead_one_does_not(tmp_path):
    mine, record = tmp_path / temporary_name("seals.json"), tmp_path / "seals.json"
    for path in (mine, record, tmp_path / of_a_dead_process(temporary_name("seals.json"))):
        path.write_bytes(b"half")
    Storage(tmp_path).clear_abandoned()
    assert sorted(tmp_path.iterdir()) == [mine, record]


def test_of_a_process_that_cannot_be_looked_up_the_age_decides():
    long_ago = time.time() - ABANDONED_SECONDS - 1
    for name in (".seals.json.267a0cd8.tmp", ".preflight.ffffff-1-1-12345678.tmp"):
        assert is_abandoned(name, long_ago)
        assert not is_abandoned(name, time.time())
        assert not is_abandoned(name, math.inf)
    for name in ("seals.json", ".hidden", "model.tmp", ".notes.tmp", ".raysearch-ab12cd-1-1-12345678"):
        assert not is_abandoned(name, long_ago)


def test_a_run_that_goes_on_clears_what_its_killed_driver_was_writing(tmp_path):
    store = RunStore(tmp_path, "run")
    store.create({})
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / of_a_dead_process(temporary_name("best.safetensors"))).touch()
    with owned(store):
        assert not [*tmp_path.rglob("*.tmp")]
    assert store.has("run.json")


def test_folders_of_killed_processes_go_with_the_next(temporary):
    with scratch_folder() as folder:
        (temporary / of_a_dead_process(folder.name) / "model").mkdir(parents=True)
    (temporary / "raysearch-notes").mkdir()
    with scratch_folder() as folder, scratch_folder() as other:
        assert {path.name for path in temporary.iterdir()} == {folder.name, other.name, "raysearch-notes"}
        assert folder.stat().st_mode & 0o077 == 0, "others of the machine have no business in it"
    assert [path.name for path in temporary.iterdir()] == ["raysearch-notes"]


def test_the_folder_for_sockets_has_a_short_path():
    with short_folder() as folder:
        longest = folder / "session_2026-11-28_11-39-12_123456_1234567" / "sockets" / "plasma_store.1"
        assert len(str(longest)) < 107
    assert not folder.exists()
