"""Finished units of work on disk, so that a resumed stage computes only what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from raysearch.artifacts.run_store import RunStore
from raysearch.artifacts.unit_files import GroupCommit, LocalFile
from raysearch.errors import StorageError

Key = tuple[str | int, ...]
UnitValue = Mapping[str, np.ndarray]

_STAGE = re.compile(r"[A-Za-z0-9_-]+")
_DIGEST_BYTES = 16
_HEAD_BYTES = 8 + _DIGEST_BYTES


class UnitLog:
    """Files of finished units under `units/<stage>/`, to which units are only ever added.

    On a local disk each unit is appended to a file at once, and outlives its process. To an object store
    the units of a few seconds go together, so that they cost it few requests; those that it has not got
    when a process is killed are computed again.

    A unit is its size, a hash, and its key and arrays as safetensors. Behind one that is half written or
    damaged nothing of its file is read: those units are computed again too.

    Args:
        store: the run.
    """

    def __init__(self, store: RunStore) -> None:
        self._storage = store.storage
        self._files: LocalFile | GroupCommit
        self._files = LocalFile(self._storage) if self._storage.is_local else GroupCommit(self._storage)

    def read(self, stage: str) -> dict[Key, UnitValue]:
        """Key → value of every unit that finished, bit for bit as it was appended.

        Raises:
            StorageError: the storage cannot be reached.
        """
        self._files.flush()
        values: dict[Key, UnitValue] = {}
        for name in self._storage.list(_folder(stage)):
            data = self._storage.read_bytes(name)
            if name.endswith(".units"):
                values.update(_units_in(data))
            else:
                values.update(_unit_of_before(stage, name, data))
        return values

    def append(self, stage: str, key: Key, value: UnitValue) -> None:
        """Keep one finished unit; the same key again replaces the value.

        Args:
            stage: what the unit is part of.
            key: the unit's.
            value: name → array.

        Raises:
            StorageError: the value cannot be kept without pickle, or the storage cannot be written.
        """
        folder = _folder(stage)
        try:
            data = _encode(key, value)
        except (SafetensorError, TypeError) as error:
            raise StorageError(
                f"the unit {key} of {stage} cannot be kept: {error}. A key is a tuple of strings and "
                "integers, a value maps names to arrays of bool, integers or floats."
            ) from error
        self._files.append(folder, data)

    def clear(self, stage: str) -> None:
        """Forget every unit of a stage."""
        self._files.forget(_folder(stage))
        self._storage.delete_dir(_folder(stage))

    def close(self) -> None:
        """Write what is not written yet.

        Raises:
            StorageError: the storage cannot be written.
        """
        self._files.close()


def _folder(stage: str) -> str:
    if _STAGE.fullmatch(stage) is None:
        raise StorageError(f"'{stage}' cannot name a stage; allowed: letters, digits, '_' and '-'.")
    return f"units/{stage}"


def _encode(key: Key, value: UnitValue) -> bytes:
    # safetensors writes the memory behind an array as it lies: a strided, transposed or broadcast array
    # would come back with other numbers. `ascontiguousarray` would turn a 0-d array into a 1-d one.
    arrays = {name: np.asarray(array, order="C") for name, array in value.items()}
    if "__metadata__" in arrays:
        raise TypeError("'__metadata__' is a name that the safetensors format keeps for itself")
    metadata = {"key": json.dumps(list(key)), "names": json.dumps(list(arrays))}
    data = bytes(save(arrays, metadata=metadata))
    return len(data).to_bytes(8, "little") + _digest(data) + data


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _units_in(data: bytes) -> Iterator[tuple[Key, UnitValue]]:
    """The units of a file, up to its end or the first that is not whole."""
    place = 0
    while place < len(data):
        begin = place + _HEAD_BYTES
        end = begin + int.from_bytes(data[place : place + 8], "little")
        unit = data[begin:end]
        if end > len(data) or _digest(unit) != data[place + 8 : begin]:
            return
        key, arrays, _ = _decode(unit)
        yield key, arrays
        place = end


def _decode(data: bytes) -> tuple[Key, UnitValue, Mapping[str, str]]:
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    loaded = load(data)
    arrays = {name: loaded[name] for name in json.loads(metadata["names"])}
    return tuple(json.loads(metadata["key"])), arrays, metadata


def _unit_of_before(stage: str, name: str, data: bytes) -> dict[Key, UnitValue]:
    """The unit of a file of its own, as units once were kept; empty where it is not whole."""
    try:
        key, arrays, metadata = _decode(data)
        checksum = metadata["checksum"]
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return {}
    digest = blake2b(json.dumps(list(key)).encode(), digest_size=_DIGEST_BYTES).hexdigest()
    # A damaged key would put a value under another unit's name.
    is_whole = name == f"{_folder(stage)}/{digest}.safetensors" and checksum == _checksum(arrays)
    return {key: arrays} if is_whole else {}


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for name, array in arrays.items():
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
