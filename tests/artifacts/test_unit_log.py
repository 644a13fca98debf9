import os

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from raysearch.artifacts import Storage, UnitLog
from raysearch.artifacts.unit_files import GroupCommit
from raysearch.errors import StorageError

VALUE = {"sum": np.array([1.5, -0.0, np.nan]), "count": np.array(7), "ok": np.array([True, False])}

keys = st.lists(st.one_of(st.text(), st.integers(-(2**63), 2**63)), max_size=4).map(tuple)
dtypes = st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_])
arrays = dtypes.flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.dictionaries(names, arrays, max_size=3)


def assert_same_bits(one, other):
    assert list(one) == list(other)
    for name, array in one.items():
        found = other[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def only_file(store):
    (path,) = (store.storage.local_path() / "units/traces").iterdir()
    return path


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, values, max_size=3))
def test_units_come_back_bit_for_bit(store, units):
    log = UnitLog(store)
    log.clear("traces")
    for key, value in units.items():
        log.append("traces", key, value)
    found = UnitLog(store).read("traces")
    assert found.keys() == units.keys()
    for key, value in units.items():
        assert_same_bits(value, found[key])


def test_arrays_of_any_layout_keep_their_numbers(store):
    base = np.arange(24.0).reshape(4, 6)
    value = {
        "transposed": base.T,
        "strided": base[::2, ::-3],
        "fortran": np.asfortranarray(base),
        "broadcast": np.broadcast_to(np.float64(2.5), (3, 2)),
        "scalar": np.float64(0.1) * np.ones(()),
    }
    UnitLog(store).append("traces", ("a",), value)
    found = UnitLog(store).read("traces")["a",]
    assert_same_bits(value, found)


def test_stages_and_kinds_of_keys_are_kept_apart(store):
    log = UnitLog(store)
    log.append("traces", ("1",), {"a": np.array(1)})
    log.append("traces", (1,), {"a": np.array(2)})
    log.append("responses", (1,), {"a": np.array(3)})
    log.append("traces", (1,), {"a": np.array(4)})
    assert {key: int(value["a"]) for key, value in log.read("traces").items()} == {("1",): 1, (1,): 4}
    log.clear("traces")
    log.clear("traces")
    assert log.read("traces") == {}
    assert list(log.read("responses")) == [(1,)]


def test_every_damaged_byte_and_every_cut_is_seen(store):
    log = UnitLog(store)
    log.append("traces", ("conv1.weight", 3), VALUE)
    path = only_file(store)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place])
        assert log.read("traces") == {}, place
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        found = log.read("traces")
        if found:  # a byte of padding may change; then the unit is still the one that was appended
            assert_same_bits(VALUE, found["conv1.weight", 3])
    path.write_bytes(whole)
    assert_same_bits(VALUE, log.read("traces")["conv1.weight", 3])


def test_leftovers_and_renamed_files_are_ignored(store):
    log = UnitLog(store)
    log.append("traces", ("a",), VALUE)
    path = only_file(store)
    path.with_name(f".{path.name}.12345678.tmp").write_bytes(path.read_bytes()[:50])
    path.with_name("0" * 32 + ".safetensors").write_bytes(path.read_bytes())
    path.with_name("notes.txt").write_bytes(b"")
    assert list(log.read("traces")) == [("a",)]


def test_what_cannot_be_kept_is_refused_before_anything_is_written(store):
    log = UnitLog(store)
    with pytest.raises(StorageError, match=r"the unit \('a',\) of traces cannot be kept"):
        log.append("traces", ("a",), {"x": np.array(["text"])})
    with pytest.raises(StorageError, match="cannot be kept"):
        log.append("traces", ("a",), {"x": np.array([object()])})
    with pytest.raises(StorageError, match="cannot be kept"):
        log.append("traces", (1.5j,), VALUE)
    with pytest.raises(StorageError, match="keeps for itself"):
        log.append("traces", ("a",), {"__metadata__": np.zeros(1)})
    with pytest.raises(StorageError, match="cannot name a stage"):
        log.read("../other")
    assert not os.path.exists(store.storage.local_path() / "units")


def test_what_no_storage_should_raise_ends_the_wait_for_units_too(tmp_path, monkeypatch):
    storage = Storage(tmp_path)

    def run_out(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(storage, "write_bytes", run_out)
    files = GroupCommit(storage)
    files.append("units/search", b"unit")
    with pytest.raises(StorageError, match=r"units/search: MemoryError.*1 finished units.*--resume"):
        files.flush()
