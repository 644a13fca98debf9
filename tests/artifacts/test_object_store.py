"""A run in an object store: an S3 server in this process, through pyarrow's own client."""

import platform

import numpy as np
import pytest

from raysearch.artifacts import RunStore, UnitLog, codecs, outage, owned, unit_files
from raysearch.cluster.pool import LocalPool
from raysearch.cluster.resuming import ResumingPool
from raysearch.errors import StorageError
from raysearch.pipeline.progress import Progress
from raysearch.records import RunStatus
from tests.support import pool_units


@pytest.fixture
def in_bucket(object_store, request):
    """A run that was just created in the bucket."""
    made = RunStore(object_store.uri(request.node.name), "run")
    made.create({"task": "t"})
    object_store.requests.clear()
    return made


def test_files_are_written_with_one_request_and_told_apart(object_store, in_bucket):
    storage = in_bucket.storage
    storage.write_bytes("sub/a", b"one")
    storage.write_bytes("sub/b", b"")
    assert object_store.requests == {"PUT": 2}
    assert (storage.read_bytes("sub/a"), storage.read_bytes("sub/b")) == (b"one", b"")
    assert b"".join(storage.read_chunks("sub/a")) == b"one"
    assert storage.list("sub") == ("sub/a", "sub/b")
    storage.delete_dir("sub")
    assert not storage.exists("sub/a")
    with pytest.raises(StorageError, match="does not exist"):
        storage.read_bytes("sub/a")


def test_a_finished_unit_costs_fewer_than_two_requests(object_store, in_bucket, monkeypatch):
    monkeypatch.setattr(unit_files, "COMMIT_SECONDS", 1e9)
    units = {(number,): (number,) for number in range(50)}

    def make_pool(log):
        report = Progress(in_bucket, lambda status: None).units
        return ResumingPool(LocalPool(None), log, "search", lambda *counts: report("search", *counts))

    pool = make_pool(UnitLog(in_bucket))
    for first in range(0, 50, 10):
        round_of_ten = {key: units[key] for key in list(units)[first : first + 10]}
        assert len(list(pool.run(pool_units.double, round_of_ten))) == 10
    pool.close()
    log = UnitLog(in_bucket)
    assert log.read("search") == {}, "units wait for others"
    pool._log.close()
    assert sum(object_store.requests.values()) < 2 * 50
    assert dict(make_pool(log).run(pool_units.die_if, units)).keys() == units.keys(), "all are read"
    log.clear("search")
    assert UnitLog(in_bucket).read("search") == {}


def test_an_outage_is_waited_out_and_one_without_end_keeps_what_was_written(
    object_store, in_bucket, monkeypatch
):
    monkeypatch.setattr(object_store, "refusal", "503 Slow Down")
    monkeypatch.setattr(outage, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(unit_files, "COMMIT_SECONDS", 0.0)
    log = UnitLog(in_bucket)
    in_bucket.storage.patience_seconds = 60.0
    # pyarrow itself asks three times.
    object_store.failures = 4
    log.append("traces", (1,), {"a": np.array(1)})
    assert {key: int(value["a"]) for key, value in log.read("traces").items()} == {(1,): 1}
    assert object_store.failures == 0

    # pyarrow asks six seconds long where another time may be better.
    object_store.refusal = "403 Forbidden"
    object_store.failures = 10**6
    log.append("traces", (2,), {"a": np.array(2)})
    with pytest.raises(StorageError, match=r"cannot write s3://bucket/.*1 finished units could not be kept"):
        log.close()
    object_store.failures = 0
    assert list(UnitLog(in_bucket).read("traces")) == [(1,)]


def test_what_another_try_cannot_mend_is_told_at_once(object_store, monkeypatch):
    monkeypatch.setattr(outage.time, "sleep", lambda seconds: pytest.fail("it is not waited"))
    nowhere = RunStore(object_store.uri("x").replace("bucket", "no-bucket"), "run")
    nowhere.storage.patience_seconds = 60.0
    advice = rf"Look whether {platform.node()} reaches it and has its keys\.$"
    with pytest.raises(StorageError, match=rf"cannot write s3://no-bucket/x/run/a.*\. {advice}"):
        nowhere.storage.write_bytes("a", b"")


def test_a_record_that_is_replaced_while_it_is_read_is_read_again(in_bucket, monkeypatch):
    in_bucket.save(codecs.STATUS, RunStatus("run", "running", "search"))
    contents = [b'{"run_id": "run", "sta', in_bucket.storage.read_bytes("status.json")]
    monkeypatch.setattr(in_bucket.storage, "read_bytes", lambda name, most: contents.pop(0))
    assert in_bucket.load(codecs.STATUS).stage == "search"


def test_the_life_of_a_run_waits_for_no_status(object_store, in_bucket):
    with owned(in_bucket):
        progress = Progress(in_bucket, lambda status: None)
        object_store.failures = 10**6
        for done in range(20):
            progress.units("search", done, 20)
        object_store.failures = 0
        progress.tell("running", "search")
        progress.end()
    assert in_bucket.load(codecs.STATUS).state == "done"
