"""How encoded units reach a storage: appended to a local file at once, to an object store in groups."""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path

from raysearch.artifacts.storage import Storage
from raysearch.errors import StorageError

COMMIT_SECONDS = 5.0
"""How long finished units wait for others to go to an object store with them."""

COMMIT_BYTES = 16 << 20
"""How many bytes of them are not waited for."""

MOST_WAITING_BYTES = 256 << 20
"""How much of a driver's memory they may take while the store does not answer; then computing waits too."""


def _new_name(folder: str) -> str:
    # Sorted as they were begun: of two values of a key the later one counts.
    return f"{folder}/{time.time_ns():020d}-{secrets.token_hex(4)}.units"


class LocalFile:
    """Appends to one file for each folder, begun by this process.

    Args:
        storage: a local folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._paths: dict[str, Path] = {}

    def append(self, folder: str, data: bytes) -> None:
        """Write at once; a unit that a loss of power takes away is computed again, so no disk is waited for.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            with self._path(folder).open("ab", buffering=0) as file:
                if file.write(data) != len(data):
                    raise OSError("the disk took only a part of it")
        except OSError as error:
            # Behind half a unit nothing would be read: what comes next goes into a file of its own.
            self.forget(folder)
            raise StorageError(f"cannot write {self._storage.shown(folder)}: {error}") from error

    def flush(self) -> None:
        """Nothing waits."""

    def forget(self, folder: str) -> None:
        """Begin another file with the next unit."""
        self._paths.pop(folder, None)

    def close(self) -> None:
        """Nothing is open."""

    def _path(self, folder: str) -> Path:
        if folder not in self._paths:
            path = self._storage.local_path(_new_name(folder))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._paths[folder] = path
        return self._paths[folder]


class GroupCommit:
    """Writes the units of a few seconds as one file, from a thread of its own.

    A store that does not answer is asked again for as long as its patience lasts, while units go on being
    computed and wait in memory. When it ends, the next call fails.

    Args:
        storage: the run's folder in an object store.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._waiting: dict[str, list[bytes]] = {}
        self._num_bytes = 0
        self._is_writing = False
        self._is_hurried = False
        self._failure: StorageError | None = None
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None

    def append(self, folder: str, data: bytes) -> None:
        """Hand over a unit; waits only where too much of memory is waiting already.

        Raises:
            StorageError: units before it could not be written.
        """
        with self._news:
            self._start()
            self._news.wait_for(lambda: self._num_bytes <= MOST_WAITING_BYTES or self._failure is not None)
            self._raise_failure()
            self._waiting.setdefault(folder, []).append(data)
            self._num_bytes += len(data)
            self._news.notify_all()

    def flush(self) -> None:
        """Wait until all is written.

        Raises:
            StorageError: it cannot be.
        """
        with self._news:
            self._is_hurried = True
            self._news.notify_all()
            self._news.wait_for(lambda: self._is_idle() or self._failure is not None)
            self._is_hurried = False
            self._raise_failure()

    def forget(self, folder: str) -> None:
        """Drop what waits for a folder; what is on its way arrives first."""
        with self._news:
            for data in self._waiting.pop(folder, ()):
                self._num_bytes -= len(data)
            self._news.wait_for(lambda: not self._is_writing)

    def close(self) -> None:
        """See `flush`; the thread, which has nothing left to do, ends with the process."""
        self.flush()

    def _is_idle(self) -> bool:
        return not self._waiting and not self._is_writing

    def _raise_failure(self) -> None:
        if self._failure is not None:
            num_units = sum(map(len, self._waiting.values()))
            raise StorageError(
                f"{self._failure} {num_units} finished units could not be kept, and are computed again by "
                "--resume; all before them are kept."
            ) from self._failure

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._go_on, daemon=True, name="raysearch-units")
            self._thread.start()

    def _go_on(self) -> None:
        while self._failure is None:
            with self._news:
                self._news.wait_for(lambda: bool(self._waiting))
                self._news.wait_for(
                    lambda: self._is_hurried or self._num_bytes >= COMMIT_BYTES, timeout=COMMIT_SECONDS
                )
                groups, self._waiting = self._waiting, {}
                self._is_writing = True
            self._write(groups)

    def _write(self, groups: dict[str, list[bytes]]) -> None:
        failure: StorageError | None = None
        while groups and failure is None:
            folder, units = next(iter(groups.items()))
            try:
                self._storage.write_bytes(_new_name(folder), b"".join(units), durable=False)
                del groups[folder]
            except StorageError as error:
                failure = error
            except Exception as error:
                # Whoever waits for this thread would wait without end.
                failure = StorageError(f"cannot write {self._storage.shown(folder)}: {error!r}.")
        with self._news:
            for folder, units in groups.items():
                self._waiting[folder] = units + self._waiting.get(folder, [])
            self._num_bytes = sum(len(unit) for units in self._waiting.values() for unit in units)
            self._is_writing = False
            self._failure = failure
            self._news.notify_all()
