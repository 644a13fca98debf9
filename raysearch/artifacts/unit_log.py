"""Finished units of work on disk, so that a resumed stage computes only what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from raysearch.artifacts.run_store import RunStore
from raysearch.errors import StorageError

Key = tuple[str | int, ...]
UnitValue = Mapping[str, np.ndarray]

_STAGE = re.compile(r"[A-Za-z0-9_-]+")


class UnitLog:
    """One small safetensors file per finished unit, under `units/<stage>/`.

    A file holds the unit's key and a checksum of its arrays besides the arrays themselves. One that is
    half written or damaged in any byte is as good as absent: that unit is computed again.

    Args:
        store: the run.
    """

    def __init__(self, store: RunStore) -> None:
        self._storage = store.storage

    def read(self, stage: str) -> dict[Key, UnitValue]:
        """Key → value of every unit that finished, bit for bit as it was appended.

        Raises:
            StorageError: the storage cannot be reached.
        """
        values: dict[Key, UnitValue] = {}
        for name in self._storage.list(_folder(stage)):
            unit = _decode(self._storage.read_bytes(name))
            if unit is None:
                continue
            key, value = unit
            # A damaged key would put a value under another unit's name.
            if name == _file_name(stage, key):
                values[key] = value
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
        try:
            data = _encode(key, value)
        except (SafetensorError, TypeError) as error:
            raise StorageError(
                f"the unit {key} of {stage} cannot be kept: {error}. A key is a tuple of strings and "
                "integers, a value maps names to arrays of bool, integers or floats."
            ) from error
        # A unit that a loss of power takes away is computed again; waiting for the disk costs more.
        self._storage.write_bytes(_file_name(stage, key), data, durable=False)

    def clear(self, stage: str) -> None:
        """Forget every unit of a stage."""
        self._storage.delete_dir(_folder(stage))


def _folder(stage: str) -> str:
    if _STAGE.fullmatch(stage) is None:
        raise StorageError(f"'{stage}' cannot name a stage; allowed: letters, digits, '_' and '-'.")
    return f"units/{stage}"


def _file_name(stage: str, key: Key) -> str:
    digest = blake2b(json.dumps(list(key)).encode(), digest_size=16).hexdigest()
    return f"{_folder(stage)}/{digest}.safetensors"


def _encode(key: Key, value: UnitValue) -> bytes:
    # safetensors writes the memory behind an array as it lies: a strided, transposed or broadcast array
    # would come back with other numbers. `ascontiguousarray` would turn a 0-d array into a 1-d one.
    arrays = {name: np.asarray(array, order="C") for name, array in value.items()}
    if "__metadata__" in arrays:
        raise TypeError("'__metadata__' is a name that the safetensors format keeps for itself")
    metadata = {
        "key": json.dumps(list(key)),
        "names": json.dumps(list(arrays)),
        "checksum": _checksum(arrays),
    }
    return bytes(save(arrays, metadata=metadata))


def _decode(data: bytes) -> tuple[Key, UnitValue] | None:
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        loaded = load(data)
        arrays = {name: loaded[name] for name in json.loads(metadata["names"])}
        key: Key = tuple(json.loads(metadata["key"]))
        checksum = metadata["checksum"]
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return None
    return (key, arrays) if checksum == _checksum(arrays) else None


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = blake2b(digest_size=16)
    for name, array in arrays.items():
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
