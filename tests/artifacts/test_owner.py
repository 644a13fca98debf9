import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from raysearch.artifacts import RunStore, codecs, current_status, owned
from raysearch.artifacts.owner import OWNER, SILENCE_SECONDS, Owner, read_owner
from raysearch.errors import StorageError
from raysearch.records import RunStatus


def elsewhere(beat):
    return Owner("other-host", "another boot", 1, 5, "token", beat)


def test_a_run_has_one_driver(store):
    with owned(store):
        owner = read_owner(store)
        assert (owner.host, owner.pid) == (socket.gethostname(), os.getpid())
        again = RunStore(store.storage.local_path().parent, "run-1")
        with (
            pytest.raises(StorageError, match=rf"worked on by process {os.getpid()} on .*two drivers"),
            owned(again),
        ):
            pass
    assert read_owner(store) is None
    with owned(store):
        pass


@pytest.mark.process
def test_a_driver_whose_process_is_gone_is_followed(store):
    here = Owner.of_this_process()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    store.save(OWNER, replace(here, pid=child.pid, beat=time.time()))
    store.save(codecs.STATUS, RunStatus("run-1", "running", "search", 3, 8, rate=1.0))
    status = current_status(store)
    assert (status.state, status.stage) == ("failed", "search")
    assert f"process {child.pid}" in status.message
    assert "--resume --run-id run-1" in status.message
    with owned(store):
        assert current_status(store).state == "running"


def test_another_process_of_the_same_number_is_not_the_driver():
    here = Owner.of_this_process()
    assert here.is_alive(0.0)
    assert not replace(here, started=here.started + 1).is_alive(here.beat)


def test_a_driver_that_could_not_take_its_name_away_is_followed_in_the_same_process(store):
    with owned(store):
        name = store.load(OWNER)
    # What is left where the folder could not be written when the driver ended.
    store.save(OWNER, name)
    with owned(store):
        assert store.load(OWNER).token != name.token


def test_a_driver_of_another_machine_is_dead_when_it_is_silent(store):
    now = time.time()
    store.save(codecs.STATUS, RunStatus("run-1", "running", "search"))
    store.save(OWNER, elsewhere(now))
    assert current_status(store).state == "running"
    with pytest.raises(StorageError, match="on other-host, last sign of life"), owned(store):
        pass
    store.save(OWNER, elsewhere(now - SILENCE_SECONDS - 1))
    assert current_status(store).state == "failed"
    with owned(store):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"host": 1}', b"\xff"])
def test_an_owner_that_cannot_be_read_is_none(store, content):
    store.storage.write_bytes("owner.json", content)
    assert read_owner(store) is None
    with owned(store):
        assert read_owner(store) is not None


def test_a_run_that_ended_is_not_called_dead(store):
    store.save(codecs.STATUS, RunStatus("run-1", "done", "export"))
    store.save(OWNER, elsewhere(0.0))
    assert current_status(store).state == "done"


def test_an_owner_that_leaves_while_it_is_read_is_none(store):
    # As a run's end looks to a reader that has seen the file a moment before.
    with owned(store):
        store.storage.delete_file("owner.json")
        assert read_owner(store) is None
        store.save(codecs.STATUS, RunStatus("run-1", "running", "export"))
        assert current_status(store).state == "running"
