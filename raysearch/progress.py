"""The status of a run while it lives: one record, written to its folder and told to a listener."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raysearch.artifacts import RunStore
from raysearch.records import RunStatus

Listener = Callable[[RunStatus], None]

WRITE_EVERY_SECONDS = 1.0


class Progress:
    """Keeps `status.json` current.

    Unit counts are written at most once a second, since an object store takes a request each; changes of
    stage and state are written at once.
    """

    def __init__(self, store: RunStore, listener: Listener) -> None:
        self._store, self._listener = store, listener
        self._written = 0.0
        earlier = store.load_status().seconds if store.has("status") else {}
        self.seconds: dict[str, float] = dict(earlier)
        self._status = RunStatus(store.run_id, "running", seconds=self.seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what an interrupted attempt spent on it is added to."""
        started = time.monotonic()
        before = self.seconds.get(name, 0.0)
        self.tell("running", name)
        try:
            yield
        finally:
            self.seconds[name] = round(before + time.monotonic() - started, 3)
            self.tell("running", name, done=self._status.done, total=self._status.total)

    def units(self, stage: str, done: int, total: int) -> None:
        """Finished units of a stage."""
        now = time.monotonic()
        self._status = self._record("running", stage, done, total, "")
        self._listener(self._status)
        if now - self._written >= WRITE_EVERY_SECONDS or done == total:
            self._written = now
            self._store.save_status(self._status)

    def tell(self, state: str, stage: str = "", done: int = 0, total: int = 0, message: str = "") -> None:
        """Write and tell a change of stage or state."""
        self._status = self._record(state, stage or self._status.stage, done, total, message)
        self._listener(self._status)
        self._store.save_status(self._status)

    def _record(self, state: str, stage: str, done: int, total: int, message: str) -> RunStatus:
        seconds = dict(self.seconds)
        return RunStatus(self._store.run_id, state, stage, done, total, seconds, time.time(), message)


@contextmanager
def reporting(progress: Progress) -> Iterator[None]:
    """Say in the run's folder how it ends."""
    progress.tell("running", "starting")
    try:
        yield
    except KeyboardInterrupt:
        progress.tell("cancelled", message="stopped from outside; --resume goes on with it")
        raise
    except Exception as error:
        progress.tell("failed", message=str(error))
        raise
    progress.tell("done")


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGTERM, by which a job is stopped, into an interrupt; after `ray.init`, which sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
