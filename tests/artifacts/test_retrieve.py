import hashlib
import json

import pytest

from raysearch.artifacts import RunStore, Storage, codecs, hash_file, retrieve, run_store, storage
from raysearch.artifacts.seals import Seals
from raysearch.errors import StorageError
from raysearch.records import RunStatus


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit_manifest(store, change):
    manifest = json.loads(store.storage.read_bytes("model/manifest.json"))
    change(manifest["files"])
    data = json.dumps(manifest).encode()
    # Whoever can write to the folder can write its seals as well.
    Seals(store.storage).announce({"model/manifest.json": data})
    store.storage.write_bytes("model/manifest.json", data)


def test_copies_records_and_model_but_no_checkpoints(done, tmp_path):
    target = retrieve("run-1", tmp_path / "runs", tmp_path / "out/here")
    assert target == tmp_path / "out/here"
    expected = {n: d for n, d in tree(done.storage.local_path()).items() if not n.startswith("checkpoints/")}
    assert tree(target) == expected
    assert RunStore(target.parent, "here").load(codecs.RESULT).run_id == "run-1"


def test_a_second_time_changes_nothing_and_mends_what_broke(done, tmp_path):
    target = retrieve(done.storage.uri, None, tmp_path / "out")
    before = tree(target)
    stamp = (target / "model/model.safetensors").stat().st_mtime_ns
    (target / "model/config.json").write_bytes(b"changed")
    (target / "result.json").unlink()
    (target / "my-notes.txt").write_text("mine")
    retrieve(done.storage.uri, None, target)
    assert tree(target) == {**before, "my-notes.txt": b"mine"}
    assert (target / "model/model.safetensors").stat().st_mtime_ns == stamp, "a good file is not copied again"


def test_works_from_an_object_store(done, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    remote = Storage("memory://bucket/runs/run-1")
    for name in done.storage.list():
        remote.write_file(name, done.storage.local_path(name))
    target = retrieve("run-1", "memory://bucket/runs", tmp_path / "out")
    assert hash_file(target / "model/onnx/model.onnx") == hashlib.sha256(bytes(range(256))).hexdigest()
    fsspec.filesystem("memory").store.clear()


def test_one_altered_byte_is_found(done, tmp_path):
    data = bytearray(done.storage.read_bytes("model/model.safetensors"))
    data[1234] ^= 1
    done.storage.write_bytes("model/model.safetensors", bytes(data))
    with pytest.raises(StorageError, match=r"model/model\.safetensors differs from .*SHA-256"):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")
    assert not any(p.name.startswith((".model", "model.s")) for p in (tmp_path / "out").rglob("*"))
    assert not (tmp_path / "out/result.json").exists()


def test_a_truncated_file_is_found(done, tmp_path):
    data = done.storage.read_bytes("model/onnx/model.onnx")
    done.storage.write_bytes("model/onnx/model.onnx", data[:-1])
    with pytest.raises(StorageError, match=r"onnx/model\.onnx differs .*size is 255 bytes, .*256 bytes"):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")


def test_files_beyond_any_measure_are_not_read(done, tmp_path, monkeypatch):
    path = done.storage.local_path("model/model.safetensors")
    path.write_bytes(path.read_bytes() * 10)
    monkeypatch.setattr(storage, "CHUNK_BYTES", 500)
    with pytest.raises(StorageError, match="its size is 4500 bytes"):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")
    monkeypatch.setattr(run_store, "MOST_JSON_BYTES", 100)
    with pytest.raises(StorageError, match=r"run.json has [\d,]+ bytes, and raysearch writes 100 at most"):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")


def test_a_missing_file_is_found(done, tmp_path):
    done.storage.local_path("model/config.json").unlink()
    with pytest.raises(
        StorageError, match=r"model/config\.json is listed in model/manifest\.json and missing"
    ):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")


@pytest.mark.parametrize("path", ["../../evil", "/tmp/evil", "a/../../evil", "..\\evil", ""])
def test_paths_out_of_the_target_are_refused_before_anything_is_written(done, tmp_path, path):
    edit_manifest(done, lambda files: files.append({"path": path, "sha256": "0" * 64, "size_bytes": 1}))
    with pytest.raises(StorageError, match="which is no path below the model folder"):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_out_of_the_target_are_not_followed(done, tmp_path):
    target, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.mkdir()
    (target / "run.json").write_bytes(done.storage.read_bytes("run.json"))
    (target / "model").symlink_to(elsewhere)
    with pytest.raises(StorageError, match="a folder in it is a link"):
        retrieve("run-1", tmp_path / "runs", target)
    assert list(elsewhere.iterdir()) == []


def test_a_target_with_other_things_is_refused(done, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("x")
    with pytest.raises(StorageError, match="is not empty and does not hold the run 'run-1'"):
        retrieve("run-1", tmp_path / "runs", target)
    with pytest.raises(StorageError, match="is a file"):
        retrieve("run-1", tmp_path / "runs", target / "thesis.txt")
    assert tree(target) == {"thesis.txt": b"x"}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            RunStatus("run-1", "running", "search", 3, 64),
            r"is 'running'.*stage 'search'.*raysearch status run-1",
        ),
        (RunStatus("run-1", "failed", "qat", message="boom."), r"is 'failed'.*'qat': boom\..*--resume"),
        (RunStatus("run-1", "cancelled", "qat"), r"is 'cancelled'.*--resume"),
    ],
)
def test_an_unfinished_run_is_refused(done, tmp_path, status, message):
    done.save(codecs.STATUS, status)
    with pytest.raises(StorageError, match=message):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")


def test_a_run_without_status_or_result_is_refused(done, tmp_path):
    done.storage.local_path("result.json").unlink()
    with pytest.raises(StorageError, match=r"its result\.json|Its result\.json"):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")
    done.storage.local_path("status.json").unlink()
    with pytest.raises(StorageError, match="is 'unknown'"):
        retrieve("run-1", tmp_path / "runs", tmp_path / "out")
