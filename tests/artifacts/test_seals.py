import pytest

from raysearch.artifacts import RunStore, codecs
from raysearch.artifacts.seals import Seals
from raysearch.errors import DamagedFileError, StorageError


def test_a_state_of_training_and_run_json_are_sealed_too(done):
    done.storage.write_bytes("checkpoints/best.safetensors", b"other")
    with pytest.raises(DamagedFileError, match=r"best\.safetensors is damaged"):
        done.load_checkpoint("best.safetensors")
    done.storage.write_bytes("run.json", done.storage.read_bytes("run.json").replace(b"64", b"65"))
    with pytest.raises(DamagedFileError, match=r"run\.json is damaged.*start it anew") as error:
        done.open()
    assert "--resume" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"files": {}, "seal": "0"}', b"\xff"])
def test_damaged_seals_are_named(done, content):
    done.storage.write_bytes("seals.json", content)
    again = RunStore(done.storage.local_path().parent, "run-1")
    with pytest.raises(StorageError, match=r"seals\.json is damaged"):
        again.load(codecs.SETUP)


def test_a_run_without_its_seals_is_refused_and_a_run_of_before_them_is_not(done):
    done.storage.delete_file("seals.json")
    parent = done.storage.local_path().parent
    with pytest.raises(StorageError, match=r"seals\.json is missing"):
        RunStore(parent, "run-1").open()
    record = done.storage.read_bytes("run.json").replace(b'"sealed": true', b'"other": true')
    done.storage.write_bytes("run.json", record)
    earlier = RunStore(parent, "run-1")
    assert earlier.open()["other"] is True
    assert earlier.load(codecs.RESULT).run_id == "run-1"


def test_a_run_killed_between_seal_and_file_can_be_read(store):
    store.save(codecs.METRICS, {"float": {"accuracy": 0.5}})
    # The hash of what would have been written next is there, the file is not.
    Seals(store.storage).announce({"metrics.json": b"never written"})
    Seals(store.storage).announce({"metrics.json": b"nor this"})
    again = RunStore(store.storage.local_path().parent, "run-1")
    assert again.load(codecs.METRICS)["float"]["accuracy"] == 0.5
    again.save(codecs.METRICS, {"float": {"accuracy": 0.75}})
    assert again.load(codecs.METRICS)["float"]["accuracy"] == 0.75


def test_a_reader_follows_a_run_that_is_alive(store):
    reader = RunStore(store.storage.local_path().parent, "run-1")
    for accuracy in (0.25, 0.5, 0.75):
        store.save(codecs.METRICS, {"float": {"accuracy": accuracy}})
        assert reader.load(codecs.METRICS)["float"]["accuracy"] == accuracy


def test_a_damaged_record_is_set_aside_and_can_be_written_again(done):
    before = done.storage.read_bytes("setup.json")
    setup = done.load(codecs.SETUP)
    done.storage.write_bytes("setup.json", b"")
    assert done.set_aside(codecs.SETUP) == ("setup.json.damaged",)
    assert not done.has(codecs.SETUP)
    done.save(codecs.SETUP, setup)
    assert done.storage.read_bytes("setup.json") == before
    assert done.load(codecs.SETUP) == setup


def test_a_status_that_cannot_be_read_is_named(done):
    contents = (
        b"",
        b"[]",
        b'{"run_id": "run-1"}',
        b'{"run_id": "run-1", "state": []}',
        b'{"run_id": "run-1", "state": "done", "seconds": null}',
        b'{"run_id": "run-1", "state": "done", "seconds": {"search": "long"}}',
        b"\xff\xfe{",
        b"[" * 100_000,
    )
    for content in contents:
        done.storage.write_bytes("status.json", content)
        with pytest.raises(DamagedFileError, match=r"status\.json is damaged"):
            done.load(codecs.STATUS)
