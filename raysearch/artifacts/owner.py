"""Who works on a run: one driver at a time, which shows every few seconds that it is alive."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from raysearch.artifacts import codecs
from raysearch.artifacts.codecs import Codec, object_codec
from raysearch.artifacts.outage import OUTAGE_SECONDS
from raysearch.artifacts.run_store import RunStore
from raysearch.errors import StorageError
from raysearch.records import RunStatus
from raysearch.temporary import machine, start_ticks

BEAT_SECONDS = 10.0
"""How often a driver writes that it is alive."""

SILENCE_SECONDS = 60.0
"""After how long without a word a driver of another machine counts as dead."""

_ENDED: set[str] = set()
"""Tokens of drivers that ended in this process, which may live on: a notebook's does."""


@dataclass(frozen=True)
class Owner:
    """The driver of a run.

    Attributes:
        host: name of its machine.
        machine: what tells whether a process number is of the reader's own machine: its last start and its
            namespace of processes; "" where the system does not tell.
        pid: of the driver.
        started: when the process started, in the system's ticks; a later process of the same number has
            another. 0 where the system does not tell.
        token: drawn by the driver.
        beat: Unix time of its last sign of life.
    """

    host: str
    machine: str
    pid: int
    started: int
    token: str
    beat: float

    @classmethod
    def of_this_process(cls) -> Owner:
        """The calling process as an owner."""
        pid = os.getpid()
        token = secrets.token_hex(8)
        return cls(socket.gethostname(), machine(), pid, start_ticks(pid), token, time.time())

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, where its process can be looked up."""
        return bool(self.machine) and self.machine == machine()

    def is_alive(self, now: float) -> bool:
        """Whether it still works on the run.

        On its own machine the process is looked up; elsewhere its last sign of life decides, which must not
        be older than `SILENCE_SECONDS`.

        Args:
            now: Unix time.
        """
        if self.token in _ENDED:
            return False
        if self.is_here:
            return start_ticks(self.pid) == self.started and self.started != 0
        return now - self.beat <= SILENCE_SECONDS

    def describe(self) -> str:
        """Process, machine and last sign of life, for messages."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.beat))
        return f"process {self.pid} on {self.host}, last sign of life at {when}"


OWNER: Codec[Owner] = object_codec("owner.json", Owner)
"""Not sealed: it is written every few seconds, and nothing is computed from it."""


def read_owner(store: RunStore) -> Owner | None:
    """The driver that a run's folder names; None where there is none, or where it cannot be read."""
    # Not asked for first: a driver that ends takes the file away at any moment.
    with suppress(StorageError):
        return store.load(OWNER)
    return None


@contextmanager
def owned(store: RunStore) -> Iterator[None]:
    """Hold a run while its driver works on it, which waits out an outage of its storage.

    Raises:
        StorageError: another driver is alive, or the storage cannot be written.
    """
    me = Owner.of_this_process()
    _refuse_second(store, read_owner(store))
    store.storage.patience_seconds = OUTAGE_SECONDS
    store.save(OWNER, me)
    # Of two that begin in the same moment, the one whose word was overwritten gives way.
    now = read_owner(store)
    if now is not None and now.token != me.token:
        _refuse_second(store, now)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, me, ended), daemon=True, name="raysearch-heartbeat")
    beating.start()
    try:
        # What a driver before this one was killed in the middle of.
        store.storage.clear_abandoned()
        yield
    finally:
        ended.set()
        beating.join()
        store.storage.patience_seconds = 0.0
        # A folder that cannot be written keeps the name of a driver that is gone, which says the same.
        _ENDED.add(me.token)
        with suppress(StorageError):
            store.storage.delete_file(OWNER.files[0])


def current_status(store: RunStore) -> RunStatus:
    """What `status.json` says, or that the driver of a run that says "running" is dead.

    `updated` of a run that goes on is its driver's last sign of life, which may be later than the record.

    Raises:
        StorageError: there is no status, or it is damaged.
    """
    status = store.load(codecs.STATUS)
    owner = read_owner(store)
    if status.state != "running" or owner is None:
        return status
    if owner.is_alive(time.time()):
        return replace(status, updated=max(status.updated, owner.beat))
    message = (
        f"its driver ended without a word ({owner.describe()}); `raysearch run … --resume --run-id "
        f"{store.run_id}` goes on with it."
    )
    return replace(status, state="failed", message=message, rate=0.0, remaining_seconds=None)


def _refuse_second(store: RunStore, owner: Owner | None) -> None:
    if owner is None or not owner.is_alive(time.time()):
        return
    raise StorageError(
        f"the run '{store.run_id}' is being worked on by {owner.describe()}: two drivers would compute the "
        f"same twice. Wait for it (`raysearch wait {store.run_id}`) or stop it first; a driver that gives no "
        f"sign of life for {SILENCE_SECONDS:.0f} seconds counts as dead."
    )


def _beat(store: RunStore, owner: Owner, ended: threading.Event) -> None:
    storage = store.storage.impatient()
    while not ended.wait(BEAT_SECONDS):
        (data,) = OWNER.write(replace(owner, beat=time.time()))
        # Nothing depends on one beat: the next one may reach the storage again.
        with suppress(StorageError):
            storage.write_bytes(OWNER.files[0], data, durable=False)
