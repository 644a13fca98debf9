"""Files of which only the newest content counts, and from which nothing is computed: status and log."""

from __future__ import annotations

import threading
from contextlib import suppress

from raysearch.artifacts.storage import Storage
from raysearch.errors import StorageError

EVERY_SECONDS = 5.0
"""How often such a file is written to an object store, where each time is a request."""


class Bulletin:
    """Writes one such file: at once to a local disk, by a thread of its own to an object store.

    A store that does not answer keeps nobody waiting and ends no run: what it misses, the next content
    replaces.

    Args:
        storage: the folder.
        name: of the file.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage.impatient()
        self._name = name
        self._newest: bytes | None = None
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._has_news = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Replace the content."""
        with self._lock:
            self._newest = data
        if self._storage.is_local:
            self._publish()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._go_on, daemon=True, name=f"raysearch-{self._name}")
            self._thread.start()
        self._has_news.set()

    def close(self) -> None:
        """Write what is not written yet, once."""
        self._is_closed.set()
        self._has_news.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._publish()

    def _go_on(self) -> None:
        while not self._is_closed.is_set():
            self._has_news.wait()
            self._has_news.clear()
            self._publish()
            self._is_closed.wait(EVERY_SECONDS)

    def _publish(self) -> None:
        with self._lock:
            data, self._newest = self._newest, None
        if data is None:
            return
        with suppress(StorageError):
            self._storage.write_bytes(self._name, data, durable=False)
