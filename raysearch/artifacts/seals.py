"""Hashes: of every record in `seals.json`, of other files at their end; what does not match is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from raysearch.artifacts.storage import Storage
from raysearch.artifacts.tables import from_json
from raysearch.errors import DamagedFileError, StorageError

SEALS_FILE = "seals.json"

_DIGEST_BYTES = 16

MOST_SEALS_BYTES = 64 << 20

_HASHED = b"rs-hash:"
"""Before the digest at the end of a file."""


def seal_of(data: bytes | memoryview) -> str:
    """BLAKE2b of a file's content, 128 bits in hexadecimal digits."""
    return blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def hashed(data: bytes) -> bytes:
    """The content with its hash behind it: for files of workers, which `seals.json` does not list."""
    return data + _HASHED + blake2b(data, digest_size=_DIGEST_BYTES).digest()


def without_hash(data: bytes, shown: str) -> bytes:
    """What `hashed` was given.

    Args:
        data: of the file.
        shown: what messages call it.

    Raises:
        DamagedFileError: the content is not what the hash is of, or there is none.
    """
    content, end = data[: -len(_HASHED) - _DIGEST_BYTES], data[-len(_HASHED) - _DIGEST_BYTES :]
    if end != _HASHED + blake2b(content, digest_size=_DIGEST_BYTES).digest():
        raise DamagedFileError(f"{shown} is damaged: it does not end with the hash of what is in it.")
    return content


class Seals:
    """The hashes of a run's files.

    A hash is written before the file that it is of, beside that of the file that is there so far: at whatever
    moment a run dies, what is on disk has its hash in the list. The hash of the older file goes with the
    next write. `seals.json` holds a hash of itself.

    Work: a file written costs one write of `seals.json` more. It is read once, and again when a file does not
    match, since a run that is alive may have changed both.

    Args:
        storage: the run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._digests: dict[str, tuple[str, ...]] | None = None

    def begin(self) -> None:
        """Start the seals of a new run, which has no files yet."""
        self._write({})

    def announce(self, contents: Mapping[str, bytes | memoryview]) -> None:
        """Note what is about to be written; call `settle` when it is there.

        Args:
            contents: file → its new content.

        Raises:
            DamagedFileError: `seals.json` is damaged.
        """
        digests = dict(self._load())
        for name, data in contents.items():
            digest = seal_of(data)
            earlier = tuple(other for other in digests.get(name, ()) if other != digest)
            digests[name] = (*earlier, digest)
        self._write(digests)

    def settle(self, contents: Mapping[str, bytes | memoryview]) -> None:
        """Forget the hashes of what was overwritten; the file changes with the next `announce`."""
        digests = dict(self._load())
        digests.update({name: (seal_of(data),) for name, data in contents.items()})
        self._digests = digests

    def forget(self, names: Iterable[str]) -> None:
        """Take files out that are set aside."""
        gone = set(names)
        self._write({name: digest for name, digest in self._load().items() if name not in gone})

    def check(self, name: str, data: bytes | memoryview, advice: str) -> None:
        """Refuse a file that is not as it was written.

        Args:
            name: the file.
            data: its content as it was read.
            advice: what to do where it is refused.

        Raises:
            DamagedFileError: it has another hash, or none is known.
        """
        digest = seal_of(data)
        if digest in self._load().get(name, ()):
            return
        # A run that is alive may have written both since `seals.json` was read.
        self._digests = None
        if digest in self._load().get(name, ()):
            return
        raise DamagedFileError(
            f"{self._storage.shown(name)} is damaged: {len(data)} bytes with the hash {digest}, which is not "
            f"what {SEALS_FILE} lists for it. {advice}",
            (name,),
        )

    def _load(self) -> dict[str, tuple[str, ...]]:
        if self._digests is None:
            self._digests = self._read()
        return self._digests

    def _read(self) -> dict[str, tuple[str, ...]]:
        shown = self._storage.shown(SEALS_FILE)
        if not self._storage.exists(SEALS_FILE):
            raise DamagedFileError(f"{shown} is missing: nothing says that the run's files are whole. {_WAY}")
        data = self._storage.read_bytes(SEALS_FILE, MOST_SEALS_BYTES)
        try:
            record = from_json(data, shown)
        except StorageError as error:
            raise DamagedFileError(f"{error} {_WAY}") from error
        digests = record.get("files")
        if not isinstance(digests, dict) or record.get("seal") != seal_of(_canonical(digests)):
            raise DamagedFileError(f"{shown} is damaged: it does not match the hash of itself. {_WAY}")
        return {name: tuple(entries) for name, entries in digests.items()}

    def _write(self, digests: Mapping[str, tuple[str, ...]]) -> None:
        files = {name: list(entries) for name, entries in sorted(digests.items())}
        record = {"schema_version": 1, "files": files, "seal": seal_of(_canonical(files))}
        self._storage.write_bytes(SEALS_FILE, json.dumps(record, indent=1).encode())
        self._digests = dict(digests)


_WAY = "Copy the run again, or start it anew with another --run-id."


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
