"""The folder of one run: its `run.json`, its records by their codecs, its checkpoints and its model."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import ArrowException

from raysearch.artifacts.codecs import Codec, SavedFile
from raysearch.artifacts.location import check_name
from raysearch.artifacts.run_id import split_run, valid_run_id
from raysearch.artifacts.run_record import first_difference, read_run_record, run_record_bytes
from raysearch.artifacts.seals import SEALS_FILE, Seals
from raysearch.artifacts.storage import Storage
from raysearch.errors import DamagedFileError, StorageError
from raysearch.records import ExportManifest

T = TypeVar("T")

RUN_FILE = "run.json"
"""What a run was started with: a folder that has it is a run."""

_CAN_BE_COMPUTED = "Copy the run again if this is a copy; `raysearch run --resume` computes it anew."
_CANNOT_BE_COMPUTED = (
    "Copy the run again, or start it anew with another --run-id: nothing else says what it was started with."
)

MOST_JSON_BYTES = 256 << 20
"""Of a record that is text: parsed it takes many times as much memory."""

_PAUSES = (0.05, 0.2, 1.0)
"""Seconds after which a record of an object store that looks damaged is read again."""

_UNREADABLE = (
    ArrowException,
    StorageError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What reading a damaged record may end in: whatever a type, a shape or a range that is wrong leads to."""


class RunStore:
    """Saves and loads the records of one run; each file is written whole or not at all.

    A file that is not as it was written is refused: `seals.json` holds a hash of each. Runs that were started
    before there were seals are read without.

    Attributes:
        run_id: the run.
        storage: the run's folder.

    Args:
        storage_uri: the folder or URI that holds runs.
        run_id: the run's name there.

    Raises:
        StorageError: the storage's scheme is unknown, or the run id is not one.
    """

    def __init__(self, storage_uri: str | os.PathLike[str], run_id: str) -> None:
        self.run_id = valid_run_id(run_id)
        self.storage = Storage(storage_uri).child(run_id)
        self._seals = Seals(self.storage)
        self._is_sealed: bool | None = None

    @property
    def uri(self) -> str:
        """Where the folder is, without credentials: fit for records and messages."""
        return self.storage.shown()

    def create(
        self,
        config: Mapping[str, Any],
        fingerprints: Mapping[str, Any] | None = None,
        versions: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the folder of a new run.

        Args:
            config: the settings as plain values.
            fingerprints: name → hash of what the settings point to, such as the model's weights.
            versions: package → version.

        Raises:
            StorageError: a run, or something else, is already there.
        """
        self.check_vacant()
        record = run_record_bytes(self.run_id, config, fingerprints or {}, versions or {})
        self._seals.begin()
        self._is_sealed = True
        self._write({RUN_FILE: record})

    def check_vacant(self) -> None:
        """Refuse a place where a new run cannot be.

        Raises:
            StorageError: a run, or something else, is already there.
        """
        if self.has(RUN_FILE):
            raise StorageError(
                f"the run '{self.run_id}' exists already at {self.uri}. Use --resume to go on with it, or "
                "another --run-id."
            )
        # A run that was killed in its first moment left its seals, and nothing that they are of.
        files = [name for name in self.storage.list() if name != SEALS_FILE]
        if files:
            raise StorageError(
                f"{self.uri} exists and is no run: it has no run.json, but holds '{files[0]}'. Use another "
                "--run-id or --storage."
            )

    def open(self) -> dict[str, Any]:
        """The content of `run.json` of an existing run.

        Raises:
            StorageError: there is no run here, it is not raysearch's, or a newer raysearch wrote it.
        """
        if not self.has(RUN_FILE):
            why = "does not exist"
            if self.storage.exists():
                why = "has no run.json: it is no run"
            raise StorageError(
                f"there is no run '{self.run_id}': {self.uri} {why}. Check the run id and --storage."
            )
        data = self.storage.read_bytes(RUN_FILE, MOST_JSON_BYTES)
        if self._sealed:
            self._seals.check(RUN_FILE, data, _CANNOT_BE_COMPUTED)
        record = read_run_record(data, self.storage.shown(RUN_FILE))
        if record.get("sealed") and not self._sealed:
            raise DamagedFileError(
                f"{self.storage.shown(SEALS_FILE)} is missing: nothing says that the run's files are whole. "
                "Copy the run again, or start it anew with another --run-id."
            )
        return record

    def settle(self, config: Mapping[str, Any]) -> None:
        """Keep the settings of a run that was started before all of them were known.

        Args:
            config: the settings as plain values, in place of those that the run was started with.
        """
        record = self.open()
        data = run_record_bytes(
            self.run_id, config, record.get("fingerprints", {}), record.get("versions", {})
        )
        self._write({RUN_FILE: data})

    def check_same(
        self,
        config: Mapping[str, Any],
        fingerprints: Mapping[str, Any] | None = None,
        ignore: Collection[str] = (),
    ) -> None:
        """Refuse to go on with a run under other settings: its records would not belong together.

        Args:
            config: the settings of now.
            fingerprints: the fingerprints of now; None leaves them unchecked.
            ignore: dotted settings that do not change the answer, such as the number of workers.

        Raises:
            StorageError: names the first field that differs, with both values.
        """
        record = self.open()
        difference = first_difference(record["config"], config, ignore)
        if difference is None and fingerprints is not None:
            saved = {"fingerprints": record.get("fingerprints", {})}
            difference = first_difference(saved, {"fingerprints": fingerprints})
        if difference is not None:
            raise StorageError(
                f"the run '{self.run_id}' cannot go on with other settings: {difference}. Set it back, or "
                "start a new run with another --run-id."
            )

    def has(self, record: Codec[Any] | str) -> bool:
        """Whether a record is there whole, or a file of this name exists."""
        name = record if isinstance(record, str) else record.files[-1]
        return self.storage.exists(name)

    def save(self, codec: Codec[T], record: T) -> None:
        """Write a record, its last file last: when that is there, the record is whole.

        Raises:
            StorageError: a file cannot be written.
        """
        contents = dict(zip(codec.files, codec.write(record), strict=True))
        if codec.sealed:
            self._write(contents)
            return
        for name, data in contents.items():
            self.storage.write_bytes(name, data, durable=False)

    def load(self, codec: Codec[T]) -> T:
        """Read a record.

        Raises:
            DamagedFileError: a file is not as it was written, or cannot be understood.
            StorageError: a file is missing.

        Example:
            >>> import tempfile
            >>> from raysearch.artifacts import codecs
            >>> store = RunStore(tempfile.mkdtemp(), "run-1")
            >>> store.save(codecs.METRICS, {"float": {"accuracy": 0.9}})
            >>> store.load(codecs.METRICS)["float"]["accuracy"]
            0.9
        """
        pauses = () if self.storage.is_local else _PAUSES
        for pause in pauses:
            # A reader of an object that is replaced meanwhile may get the first bytes of the new one.
            with suppress(DamagedFileError):
                return self.understand(codec, self.read_files(codec))
            time.sleep(pause)
        return self.understand(codec, self.read_files(codec))

    def read_files(self, codec: Codec[Any]) -> list[SavedFile]:
        """The files of a record as they lie there, each checked against its hash.

        Raises:
            DamagedFileError: a file is not as it was written.
            StorageError: a file is missing.
        """
        files: list[SavedFile] = []
        for name in codec.files:
            # The Gram matrix may be larger than what memory has room for twice.
            is_large = name.endswith(".arrow")
            most = MOST_JSON_BYTES if name.endswith(".json") else None
            data = self.storage.map_bytes(name) if is_large else self.storage.read_bytes(name, most)
            if codec.sealed and self._sealed:
                self._seals.check(name, data, _CAN_BE_COMPUTED)
            files.append(SavedFile(data, self.storage.shown(name)))
        return files

    def understand(self, codec: Codec[T], files: list[SavedFile]) -> T:
        """The record of files that were read.

        Raises:
            DamagedFileError: they are no such record.
        """
        try:
            return codec.read(files)
        except _UNREADABLE as error:
            reason = f"{files[-1].shown} is damaged: {error!r:.300}."
            if isinstance(error, StorageError):
                reason = str(error)
            raise DamagedFileError(f"{reason} {_CAN_BE_COMPUTED}", codec.files) from error

    def set_aside(self, codec: Codec[Any]) -> tuple[str, ...]:
        """Keep the files of a damaged record under other names, so that it counts as not there.

        Returns:
            The new names, `NAME.damaged`, of those files that are there.

        Raises:
            StorageError: the storage cannot be read or written.
        """
        names = [name for name in codec.files if self.storage.exists(name)]
        for name in names:
            self.storage.write_bytes(f"{name}.damaged", self.storage.read_bytes(name))
        # The last file says that the record is whole, so it goes first.
        for name in reversed(names):
            self.storage.delete_file(name)
        if self._sealed:
            self._seals.forget(names)
        return tuple(f"{name}.damaged" for name in names)

    @property
    def _sealed(self) -> bool:
        if self._is_sealed is None:
            self._is_sealed = self.storage.exists(SEALS_FILE)
        return self._is_sealed

    def _write(self, contents: Mapping[str, bytes | memoryview]) -> None:
        """Write files in this order, sealed where the run is."""
        if self._sealed:
            self._seals.announce(contents)
        for name, data in contents.items():
            self.storage.write_bytes(name, data)
        if self._sealed:
            self._seals.settle(contents)

    def save_checkpoint(self, name: str, data: bytes) -> None:
        """Write a state of the training."""
        self._write({f"checkpoints/{check_name(name)}": data})

    def load_checkpoint(self, name: str) -> bytes:
        """Read a state of the training.

        Raises:
            DamagedFileError: it is not as it was written.
            StorageError: it is missing.
        """
        path = f"checkpoints/{check_name(name)}"
        data = self.storage.read_bytes(path)
        if self._sealed:
            self._seals.check(path, data, _CAN_BE_COMPUTED)
        return data

    def delete_folder(self, name: str) -> None:
        """Delete a folder of the run with its files, and their seals."""
        files = self.storage.list(name)
        self.storage.delete_dir(name)
        if files and self._sealed:
            self._seals.forget(files)

    def check_model(self, manifest: ExportManifest) -> None:
        """Hash the files of the exported model.

        Raises:
            DamagedFileError: one is missing, or is not what the manifest lists.
        """
        for file in manifest.files:
            name = f"model/{file.path}"
            if not self.storage.exists(name):
                raise DamagedFileError(f"{self.storage.shown(name)} is missing, and the manifest lists it.")
            if hashlib.sha256(self.storage.read_bytes(name)).hexdigest() != file.sha256:
                raise DamagedFileError(
                    f"{self.storage.shown(name)} is damaged: the manifest has another hash."
                )

    def save_model(self, folder: Path) -> None:
        """Copy the files of an export into `model/`, `manifest.json` last; what an older one left goes."""
        files = Storage(folder).list()
        # The manifest comes last: where it is, all that it lists is.
        for name in sorted(files):
            if name != "manifest.json":
                self.storage.write_file(f"model/{name}", folder / name)
        if "manifest.json" in files:
            self._write({"model/manifest.json": (folder / "manifest.json").read_bytes()})
        written = {f"model/{name}" for name in files}
        for name in set(self.storage.list("model")) - written:
            self.storage.delete_file(name)


def resolve_run(run: str | os.PathLike[str], storage: str | os.PathLike[str] | None = None) -> RunStore:
    """The store of an existing run, from its id and a storage, or from the path or URI of its folder.

    Raises:
        StorageError: there is no such run.
    """
    store = RunStore(*split_run(run, storage))
    store.open()
    return store
