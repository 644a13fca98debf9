import os

import pytest

from raysearch.artifacts import Storage, redact
from raysearch.artifacts.location import check_name
from raysearch.errors import StorageError

DATA = bytes(range(256)) * 5


@pytest.fixture(params=["path", "file", "memory"])
def storage(request, tmp_path):
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec")
        yield Storage("memory://bucket/runs")
        fsspec.filesystem("memory").store.clear()
    else:
        yield Storage(tmp_path if request.param == "path" else f"file://{tmp_path}")


def test_reads_what_it_wrote_and_replaces_it(storage):
    storage.write_bytes("a/b.bin", b"old")
    storage.write_bytes("a/b.bin", DATA)
    storage.write_bytes("a/packed.gz", DATA)
    assert storage.read_bytes("a/b.bin") == DATA
    assert b"".join(storage.read_chunks("a/packed.gz")) == DATA, "content is never decompressed"


def test_knows_files_and_folders(storage):
    assert storage.list("a") == ()
    assert not storage.exists("a/b.bin")
    for name in ("a/z", "a/b/c", "d"):
        storage.write_bytes(name, b"1")
    assert storage.exists("a/z")
    assert storage.exists("a")
    assert storage.list() == ("a/b/c", "a/z", "d")
    assert storage.list("a") == ("a/b/c", "a/z")
    assert storage.child("a").list() == ("b/c", "z")


def test_deletes_folders_only_below_itself(storage):
    storage.write_bytes("a/b/c", b"1")
    storage.delete_dir("a")
    storage.delete_dir("a")
    assert storage.list() == ()
    with pytest.raises(StorageError, match="no name of a file"):
        storage.delete_dir("")


def test_writes_a_local_file_and_names_a_missing_one(storage, tmp_path):
    source = tmp_path / "source.bin"
    source.write_bytes(DATA)
    storage.write_file("x/y", source)
    assert storage.read_bytes("x/y") == DATA
    with pytest.raises(StorageError, match=r"gone\.bin does not exist"):
        storage.write_file("x/y", tmp_path / "gone.bin")
    assert storage.read_bytes("x/y") == DATA or not storage.is_local


def test_a_missing_file_is_named(storage):
    with pytest.raises(StorageError, match=r"nothing\.json does not exist"):
        storage.read_bytes("nothing.json")


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "./a", "C:/x", "a\\b", "a\0b"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(StorageError, match="no name of a file below a folder"):
        check_name(name)
    with pytest.raises(StorageError):
        Storage(tmp_path).write_bytes(name, b"x")


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    storage.write_bytes("status.json", b"old")

    def interrupted():
        yield b"half of the n"
        assert storage.read_bytes("status.json") == b"old"
        raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "read_chunks", lambda self, name: interrupted())
    with pytest.raises(KeyboardInterrupt):
        storage.write_file("status.json", tmp_path / "source")
    assert storage.read_bytes("status.json") == b"old"
    assert os.listdir(tmp_path) == ["status.json"]


def test_what_a_killed_writer_left_is_not_listed(tmp_path):
    storage = Storage(tmp_path)
    storage.write_bytes("units/a", b"1")
    (tmp_path / "units/.b.0a1b2c3d.tmp").write_bytes(b"half")
    assert storage.list() == ("units/a",)


def test_relative_paths_are_made_absolute_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs")
    monkeypatch.chdir("/")
    assert storage.local_path("a/b") == tmp_path / "runs/a/b"
    assert Storage("~/runs").uri == os.path.expanduser("~/runs")
    assert Storage("file:///data/my%20runs").local_path().as_posix() == "/data/my runs"


def test_unknown_schemes_are_refused_with_the_known_ones():
    with pytest.raises(StorageError, match=r"unknown scheme 'floppy'.*gs://.*s3://"):
        Storage("floppy://disk/a")


def test_a_file_uri_of_another_machine_is_refused():
    with pytest.raises(StorageError, match=r"file:///data/runs"):
        Storage("file://data/runs")


def test_object_stores_are_not_contacted_before_use():
    storage = Storage("s3://key:secret@bucket/runs?region=eu-west-1")
    assert not storage.is_local
    child = storage.child("run-1")
    assert child.uri == "s3://key:secret@bucket/runs/run-1?region=eu-west-1"
    assert child.shown("run.json") == "s3://bucket/runs/run-1/run.json"
    assert "secret" not in repr(child)
    with pytest.raises(StorageError, match=r"s3://bucket/runs/a is not on this machine"):
        storage.local_path("a")


def test_an_unreachable_store_is_named(monkeypatch):
    class Unreachable:
        @staticmethod
        def from_uri(uri):
            raise OSError("When resolving region for bucket 'bucket': no network")

    monkeypatch.setattr("raysearch.artifacts.location.arrow_fs.FileSystem", Unreachable)
    with pytest.raises(StorageError, match=r"s3://bucket/runs cannot be opened.*no network"):
        Storage("s3://user:pw@bucket/runs").exists("a")


def test_redact_leaves_plain_locations():
    assert redact("/data/a@b?c") == "/data/a@b?c"
    assert redact("gs://bucket/a/") == "gs://bucket/a"
    assert redact("memory://") == "memory://"


def test_a_folder_in_the_way_is_explained(tmp_path):
    storage = Storage(tmp_path)
    storage.write_bytes("a", b"1")
    with pytest.raises(StorageError, match="cannot write"):
        storage.write_bytes("a/b", b"2")
